// Teaching: pairs of pictures, before and after, become an adapter; a process of its own trains it meanwhile.

import { button, h, openDialog } from "./dom.js";
import { ask } from "./server.js";

export const listLessons = async () => (await ask("GET", "/lessons")).data;

const stem = (file) => file.name.replace(/\.\w+$/, "");

// Files before and after as pairs: by name where all names agree, else in their order.
function paired(before, after) {
  const byName = new Map(after.map((file) => [stem(file), file]));
  if (before.length === after.length && before.every((file) => byName.has(stem(file)))) return before.map((file) => [file, byName.get(stem(file))]);
  return before.map((file, place) => [file, after[place] || null]);
}

// about: { pairs: answers that changed a picture, session, lessons(), uses(name), use(name, strength), refresh() }.
export function openTeach(root, about) {
  const files = { before: [], after: [], preview: [] }, chosen = new Set(), made = [];
  const show = (file) => { const url = URL.createObjectURL(file); made.push(url); return h("img", { src: url, alt: file.name, title: file.name }); };
  const wrong = h("p", { class: "fine wrong", role: "alert", hidden: true });
  const table = h("div", { class: "pairs" }), list = h("div", { class: "lessons", "aria-live": "polite" });
  const name = h("input", { id: "lesson-name", maxlength: "60", placeholder: "sepia", oninput: () => { words.placeholder = name.value || "sepia"; } });
  const words = h("input", { id: "lesson-words", maxlength: "400", placeholder: "sepia" });
  const steps = h("input", { id: "lesson-steps", type: "number", min: "1", max: "100000", placeholder: "200" });
  const refuse = (text) => { wrong.textContent = text; wrong.hidden = !text; };
  const pick = (side, label, multiple = true) => h("label", { class: "file" }, label,
    h("input", { type: "file", accept: "image/*", multiple, id: "lesson-" + side, onchange: (event) => { files[side] = multiple ? [...files[side], ...event.target.files] : [...event.target.files]; event.target.value = ""; drawPairs(); } }));
  function drawPairs() {
    made.splice(0).forEach((url) => URL.revokeObjectURL(url));
    const own = paired(files.before, files.after), loose = files.after.length - files.before.length;
    const rows = own.map(([before, after], place) => h("div", { class: "pair" }, show(before), "→", after ? show(after) : h("span", { class: "blank" }, "?"),
      h("button", { type: "button", "aria-label": `Remove ${before.name}`, onclick: () => { files.before = files.before.filter((one) => one !== before); files.after = files.after.filter((one, n) => one !== after && (after || n !== place)); drawPairs(); } }, "×")));
    const count = own.filter(([, after]) => after).length + chosen.size;
    table.replaceChildren(...rows, h("p", { class: "fine" }, loose > 0 ? `${loose} more pictures after than before.` : `${count === 1 ? "1 pair" : count + " pairs"}; about ten are good. From six on, the last one is kept apart, to see what was learnt.`));
  }
  async function begin() {
    refuse("");
    if (!name.value.trim()) { refuse("Give the edit a name."); name.focus(); return; }
    const form = new FormData(), own = paired(files.before, files.after);
    if (files.before.length !== files.after.length) { refuse(`${files.before.length} pictures before and ${files.after.length} after: they go in pairs.`); return; }
    form.append("name", name.value.trim()); form.append("instruction", words.value.trim()); form.append("session", about.session); form.append("steps", steps.value);
    if (chosen.size) form.append("nodes", JSON.stringify([...chosen]));
    own.forEach(([before, after]) => { form.append("before", before); form.append("after", after); });
    if (files.preview[0]) form.append("preview", files.preview[0]);
    try { await ask("POST", "/lessons", form); await about.refresh(); drawLessons(); } catch (error) { refuse(error.message); }
  }
  const act = (what) => async () => { try { await what(); } catch (error) { refuse(error.message); } await about.refresh(); drawLessons(); };
  function lesson(one) {
    const address = `/lessons/${encodeURIComponent(one.name)}`, running = one.status === "running";
    const eta = one.eta_s === null || one.eta_s === undefined ? "starting" : one.eta_s > 90 ? `about ${Math.ceil(one.eta_s / 60)} min` : `about ${Math.ceil(one.eta_s)} s`;
    const state = running ? (one.steps ? `Step ${one.step} of ${one.steps} · ${eta}` : "Starting") : one.status === "failed" ? one.message : one.status === "stopped" ? `Stopped after ${one.step} of ${one.steps} steps; what was learnt is kept.` : one.steps ? `Taught from ${one.pairs} pairs in ${one.steps} steps.` : "An adapter from elsewhere.";
    return h("article", { class: "lesson " + one.status, "data-lesson": one.name },
      h("h3", {}, one.name, one.instruction && one.instruction !== one.name ? h("span", { class: "fine" }, ` “${one.instruction}”`) : null),
      h("p", { class: "fine state" }, state), one.verdict ? h("p", { class: "fine verdict" }, one.verdict[0].toUpperCase() + one.verdict.slice(1) + ".") : null,
      running ? h("progress", { max: String(one.steps || 1), value: String(one.step || 0), "aria-label": `Progress of ${one.name}` }) : null,
      one.steps ? h("img", { class: "look", src: `${address}/preview?step=${Math.floor((6 * one.step) / one.steps)}-${one.status}`, alt: `${one.name}: a picture that is not among the pairs, before and as taught`, onerror: (event) => event.target.remove() }) : null,
      h("div", { class: "row" },
        one.usable && !running ? button("check", about.uses(one.name) ? "In use" : "Use it", () => { about.use(one.name, about.uses(one.name) ? 0 : 1); drawLessons(); }, { class: "edged use", "aria-pressed": String(about.uses(one.name)) }) : null,
        running ? button("stop", "Stop and keep", act(() => ask("POST", `${address}/stop`)), { class: "edged stop" }) : null,
        one.usable && !running ? h("a", { class: "button", href: `${address}/file`, download: "" }, "File for --lora, diffusers") : null,
        one.usable && !running ? h("a", { class: "button", href: `${address}/file?format=comfyui`, download: "" }, "File for ComfyUI") : null,
        running ? null : button("close", one.usable ? "Delete" : "Dismiss", act(async () => { about.use(one.name, 0); await ask("DELETE", address); }), { class: "delete" })));
  }
  function drawLessons() { list.replaceChildren(...about.lessons().map(lesson)); }
  const answers = about.pairs.length ? h("details", { class: "answers" }, h("summary", {}, "Answers of this conversation that you like"),
    h("div", { class: "pairs" }, about.pairs.map((one) => h("label", { class: "pair", title: one.text },
      h("input", { type: "checkbox", "data-node": one.id, onchange: (event) => { event.target.checked ? chosen.add(one.id) : chosen.delete(one.id); drawPairs(); } }),
      h("img", { src: one.before, alt: "before" }), "→", h("img", { src: one.after, alt: one.name }))))) : null;
  const dialog = openDialog(root, "Teach an edit", [list, h("section", { class: "teach" },
    h("p", {}, "Show about ten pictures before and after one edit, and the model learns it. The studio goes on meanwhile."),
    h("div", { class: "row" }, h("label", {}, "Name", name), h("label", {}, "Words that ask for it", words), h("label", {}, "Training steps", steps)),
    h("div", { class: "row" }, pick("before", "Pictures before"), pick("after", "The same after"), pick("preview", "A picture to look at meanwhile (optional)", false)),
    table, answers, wrong)],
  [h("button", { type: "button", onclick: () => dialog.close() }, "Close"), h("button", { type: "button", class: "main", id: "teach-now", onclick: begin }, "Teach")]);
  drawPairs(); drawLessons();
  const ticking = setInterval(() => { if (!dialog.open) { clearInterval(ticking); made.forEach((url) => URL.revokeObjectURL(url)); return; } if (about.lessons().some((one) => one.status === "running") || list.querySelector(".running")) drawLessons(); }, 1000);
}
