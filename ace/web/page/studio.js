// The studio's page: draws the view that the server sends and sends back what somebody does.
//
// `element`, `props`, `trigger` and `watch` are those of Gradio's HTML component: its place in the page, `props.value`
// the view, `trigger(name, data)` sends an event, `watch` tells of new views. `examples` is the gallery. All text that
// comes from people goes into the page as text, never as markup.

export default function studio({ element, props, trigger, watch, examples }) {

const root = element.querySelector(".studio");
const memory = { read(key) { try { return JSON.parse(localStorage.getItem("ace-studio-" + key)); } catch { return null; } },
                 write(key, value) { try { localStorage.setItem("ace-studio-" + key, JSON.stringify(value)); } catch { /* private window */ } } };
let view = null;                 // what the server said last
let draft = emptyDraft();        // the message being written
let awaiting = false;            // a message was sent and the server has not answered yet
let undone = [];                 // where undo came from, for redo
let lastShown = null;            // id of the turn at the end of the talk
const comparing = new Map();     // node -> place of the slider, in percent
const drawn = new Map();         // node -> { key, element }: turns that need not be drawn again

const ICONS = {
  plus: "M12 5v14M5 12h14", close: "M6 6l12 12M18 6L6 18", send: "M12 19V5M6 11l6-6 6 6", stop: "M7 7h10v10H7z",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01", brush: "M14 5l5 5-8 8H6v-5zM12 7l5 5", at: "M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0zm0 0v1.5a2.5 2.5 0 0 0 5 0V12a9 9 0 1 0-3.6 7.2",
  tune: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5v5M8 14.5v5", undo: "M8 5L4 9l4 4M4 9h10a6 6 0 0 1 0 12h-3", redo: "M16 5l4 4-4 4M20 9H10a6 6 0 0 0 0 12h3",
  rub: "M9 19h11M5 14l8-8 6 6-7 7H9z", again: "M20 11a8 8 0 1 0-2 6M20 5v6h-6", many: "M4 4h10v10H4zM10 17v3h10V10h-3", compare: "M12 3v18M4 6h5v12H4zM15 6h5v12h-5z",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14", more: "M6 12h.01M12 12h.01M18 12h.01", grid: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3v18", branch: "M7 4v16M7 14c6 0 10-2 10-7M14.5 6.5L17 4l2.5 2.5", check: "M5 12l5 5L20 7",
};

function h(tag, attributes, ...children) {
  const made = tag === "svg" || tag === "path" ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") made.style.cssText = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
const icon = (name) => h("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, h("path", { d: ICONS[name] }));
const button = (name, label, onclick, more = {}) =>
  h("button", { type: "button", title: label, "aria-label": label, onclick, ...more }, icon(name), h("span", { class: "label" }, label));
const address = (path) => "/studio/" + path;
const node = (id) => view.nodes.find((one) => one.id === id);
const mention = (id) => "@" + Number(id);
const answerOf = (id) => address(`nodes/${id}/image.png`);
const smallOf = (id) => address(`nodes/${id}/thumbnail`);
const words = (task) => task.split("/").pop().replaceAll("_", " ");
function emptyDraft() { return { uploads: [], mask: null, maskMode: "mark", extend: null, next: [] }; }

function pathTo(id) {
  const path = [];
  for (let at = id && node(id); at; at = at.parents.length ? node(at.parents[0]) : null) path.unshift(at);
  return path;
}

// The skeleton

const part = {};
root.append(
  h("header", {},
    h("h1", {}, "ace"),
    (part.where = h("span", { class: "where" })),
    button("plus", "New", () => go(null), { id: "new" }),
    button("grid", "Examples", openGallery, { id: "examples" }),
    button("theme", "Light or dark", switchTheme, { id: "theme" }),
    h("details", { class: "menu right", id: "menu" }, h("summary", { "aria-label": "Session" }, icon("more")),
      h("div", {},
        h("a", { class: "button", href: address("session.zip"), download: "", id: "export" }, icon("save"), "Export this session"),
        button("plus", "Import a session", () => part.archive.click(), { id: "import" }))),
    (part.archive = h("input", { type: "file", accept: ".zip", hidden: true, id: "archive", onchange: importSession }))),
  (part.nav = h("nav", { "aria-label": "History" },
    h("div", { class: "steps" },
      (part.undo = button("undo", "Undo", undo, { id: "undo" })),
      (part.redo = button("redo", "Redo", redo, { id: "redo" }))),
    (part.tree = h("div", { class: "tree", onkeydown: walkTree })))),
  (part.talk = h("main", { class: "talk", tabindex: "-1" }, (part.column = h("div", { class: "column" })))),
  (part.form = h("form", { onsubmit: (event) => { event.preventDefault(); send(); } },
    (part.notice = h("div", { class: "notice", hidden: true })),
    (part.next = h("div", { class: "next" })),
    (part.panel = h("div", { class: "panel", hidden: true })),
    (part.box = h("div", { class: "box" },
      (part.about = h("div", { class: "about" })),
      (part.tray = h("div", { class: "tray" })),
      (part.text = h("textarea", { id: "say", rows: "1", "aria-label": "Your message", "aria-autocomplete": "list", placeholder: "Say what to make", oninput: typed, onkeydown: pressed, onpaste: pasted })),
      h("div", { class: "tools" },
        button("picture", "Add pictures", () => part.file.click(), { id: "add" }),
        button("at", "Mention", () => openMentions(""), { id: "mention" }),
        (part.paint = button("brush", "Paint a mask", openEasel, { id: "paint" })),
        button("tune", "Settings", toggleSettings, { id: "settings", "aria-expanded": "false" }),
        (part.send = h("button", { type: "submit", class: "main push send", id: "send" }))))),
    (part.file = h("input", { type: "file", id: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => { addFiles([...part.file.files]); part.file.value = ""; } })))),
  (part.live = h("div", { class: "unseen", role: "status", "aria-live": "polite" })));

root.dataset.theme = memory.read("theme") || "auto";
part.text.value = memory.read("words") || "";
const settings = { steps: "", guidance: "", seed: "", width: "", height: "", history: "", count: "1", negative: "", ...memory.read("settings") };

// Drawing

function draw(next) {
  if (!next || !next.nodes) return;
  const before = view;
  view = next;
  if (awaiting && (!before || next.version !== before.version)) {
    awaiting = false;
    if (!next.notice || next.notice.kind !== "error") {
      draft = { ...emptyDraft(), next: draft.next };
      part.text.value = "";
      memory.write("words", "");
    }
  }
  if (before && before.head !== view.head && !draft.uploads.length) clearMask();
  part.where.textContent = `${view.model.name} · ${view.folder}`;
  drawTree(!before || before.head !== view.head || before.nodes.length !== view.nodes.length);
  drawTalk(before);
  drawComposer();
  drawNotice();
}

function drawTalk(before) {
  const path = pathTo(view.head);
  const turns = path.map(turnOf);
  const busy = view.running;
  if (!path.length && !busy) turns.push(welcome());
  if (busy) turns.push(running(busy));
  const column = part.column;
  turns.forEach((turn, place) => { if (column.children[place] !== turn) column.insertBefore(turn, column.children[place] || null); });
  while (column.children.length > turns.length) column.lastChild.remove();
  const last = turns.at(-1);
  // the head alone would not do: for a moment a turn's answer can stand above its running self, and the end is no other
  if (last.id !== lastShown) requestAnimationFrame(() => reveal(last, before ? "smooth" : "auto"));
  lastShown = last.id;
  if (before && before.running && !busy && before.head !== view.head) part.live.textContent = `Done: ${mention(view.head)}`;
}

// Scroll to the end of a turn, but never so far that the top of its picture is out of sight.
function reveal(turn, behavior) {
  const box = part.talk.getBoundingClientRect(), picture = turn.querySelector(".stage") || turn;
  const end = turn.getBoundingClientRect().bottom + 20 - box.bottom, most = picture.getBoundingClientRect().top - 20 - box.top;
  part.talk.scrollBy({ top: Math.min(end, most), behavior });
}

function turnOf(one) {
  const siblings = view.nodes.filter((other) => (other.parents[0] || null) === (one.parents[0] || null) && (one.parents.length || other.text === one.text));
  const key = JSON.stringify([siblings.map((s) => s.id), one.id === view.head, view.drift[one.id], comparing.has(one.id)]);
  const kept = drawn.get(one.id);
  if (kept && kept.key === key) return kept.element;
  const open = kept && kept.element.querySelector("details.made").open;
  const turn = h("article", { class: "turn", id: "turn-" + one.id, "aria-label": `${mention(one.id)}: ${one.text}` }, asked(one), answered(one, siblings));
  turn.querySelector("details.made").open = Boolean(open);
  drawn.set(one.id, { key, element: turn });
  return turn;
}

function asked(one) {
  const shown = one.inputs.map((input, place) => h("div", { class: "shown" },
    h("img", { src: address(input.picture), alt: input.node ? `answer ${mention(input.node)}` : `picture ${place + 1}` }),
    input.mask && h("div", { class: "mask", style: `mask-image: url("${address(input.mask)}")` }),
    input.node && h("i", {}, mention(input.node))));
  return h("div", { class: "asked" }, shown.length ? h("div", { class: "inputs" }, shown) : null, h("p", {}, named(one.text, one.inputs)));
}

function named(text, inputs) {
  const several = /\{image\d/.test(text);
  return text.split(/(\{image\d*\})/).map((piece) => {
    const match = /^\{image(\d*)\}$/.exec(piece);
    if (!match) return piece;
    const place = Number(match[1] || 0), input = inputs[place], numbered = `picture ${place + 1}`;
    if (!input) return several ? numbered : "the picture";
    return h("span", { class: "name" }, h("img", { src: address(input.picture), alt: "" }), input.node ? mention(input.node) : numbered);
  });
}

function stageStyle(width, height) {
  const wide = Math.min(Math.max(width, 384), 720);
  return `--aspect: ${width} / ${height}; --wide: min(${wide}px, ${Math.round((70 * width) / height)}vh)`;
}

function beforeOf(one) {
  if (one.inputs.length) return address(one.inputs[0].picture);
  return one.parents.length && one.rounds ? answerOf(one.parents[0]) : null;
}

function answered(one, siblings) {
  const isHead = one.id === view.head;
  const before = beforeOf(one);
  const stage = h("div", { class: "stage", style: stageStyle(one.width, one.height) },
    h("img", { src: answerOf(one.id), alt: `${mention(one.id)}: ${one.text}`, width: one.width, height: one.height }));
  if (comparing.has(one.id) && before) {
    const place = (value) => { comparing.set(one.id, value); stage.style.setProperty("--at", value + "%"); };
    stage.append(
      h("img", { class: "before", src: before, alt: "before" }), h("div", { class: "edge" }),
      h("span", { class: "tag", style: "left: 8px" }, "before"), h("span", { class: "tag", style: "right: 8px" }, "after"),
      h("input", { type: "range", min: "0", max: "100", step: "1", value: comparing.get(one.id), "aria-label": "How much of the picture before is shown", oninput: (event) => place(event.target.value) }));
    place(comparing.get(one.id));
  }
  const compare = () => { comparing.has(one.id) ? comparing.delete(one.id) : comparing.set(one.id, 50); draw({ ...view }); };
  const save = (suffix, label) => h("a", { class: "button", href: address(`nodes/${one.id}/answer.${suffix}`), download: `ace-${one.id}.${suffix}` }, label);
  const close = (act) => (event) => { event.target.closest("details").open = false; act(); };
  const bar = h("div", { class: "bar" },
    button("again", "Try again", () => { trigger("again", { node: one.id, count: 1 }); }, { class: "again" }),
    before && button("compare", "Compare", compare, { class: "compare", "aria-pressed": String(comparing.has(one.id)) }),
    !isHead && button("branch", "Go on from here", () => go(one.id), { class: "branch" }),
    h("details", { class: "menu" }, h("summary", { "aria-label": "Download" }, icon("save"), h("span", { class: "label" }, "Download")),
      h("div", {}, save("png", "PNG, exact"), save("jpg", "JPEG"), save("webp", "WebP, exact"))),
    h("details", { class: "menu" }, h("summary", { "aria-label": "More" }, icon("more")),
      h("div", {},
        button("many", "Four variants", close(() => trigger("again", { node: one.id, count: 4 })), { class: "variants" }),
        button("at", "Mention", close(() => insertMention(mention(one.id)))),
        button("check", "Make again and compare", close(() => trigger("replay", { node: one.id })), { class: "replay" }))));
  const facts = [["Seed", one.seed], ["Steps", one.steps], ["Guidance", one.guidance], ["Worked at", one.size.join("×") + " px"],
    ["Earlier rounds seen", one.rounds], ["Avoided", one.negative], ["Model", `${one.model} ${one.model_sha256.slice(0, 12)}`]];
  const drift = view.drift[one.id];
  return h("div", { class: "answer" }, stage,
    siblings.length > 1 ? h("div", { class: "siblings", role: "group", "aria-label": "Variants" }, siblings.map((other) =>
      h("button", { type: "button", "aria-label": `Variant ${mention(other.id)}`, "aria-current": String(other.id === one.id), onclick: () => go(other.id) }, h("img", { src: smallOf(other.id), alt: "" })))) : null,
    bar,
    drift ? h("p", { class: "fine drift" }, drift[0].toUpperCase() + drift.slice(1)) : null,
    h("details", { class: "made" }, h("summary", {}, `${mention(one.id)} · how it was made`),
      h("dl", {}, facts.filter(([, value]) => value !== "" && value !== 0).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]))));
}

function running(busy) {
  const old = part.column.querySelector("#running");
  const turn = old || h("article", { class: "turn", id: "running" });
  const source = busy.parent ? node(busy.parent) : null;
  const shape = stageStyle(source ? source.width : 64, source ? source.height : 64);
  const eta = busy.eta_s === null ? "starting" : busy.eta_s < 1 ? "a moment" : `about ${Math.ceil(busy.eta_s)} s`;
  const shown = busy.previews.length ? busy.previews.map((src) => h("div", { class: "stage", style: shape }, h("img", { src, alt: "preview" }))) : [h("div", { class: "stage waiting", style: shape })];
  turn.replaceChildren(
    busy.kind === "answer" ? h("div", { class: "asked" },
      busy.pictures.length ? h("div", { class: "inputs" }, busy.pictures.map((path) => h("div", { class: "shown" }, h("img", { src: address(path), alt: "" })))) : null,
      h("p", {}, named(busy.text, []))) : "",
    h("div", { class: "answer", "aria-busy": "true" },
      busy.kind === "answer" ? h("div", { class: busy.previews.length > 1 ? "previews many" : "previews" }, shown) : null,
      h("progress", { max: String(busy.total || 1), value: String(busy.step), "aria-label": "Progress" }),
      h("p", { class: "fine", id: "progress" }, busy.total ? `Step ${busy.step} of ${busy.total} · ${eta}` : "Starting")));
  return turn;
}

function card(one) {
  const pictures = one.pictures.map((name) => h("img", { src: address("examples/" + name), alt: "", loading: "lazy" }));
  return h("button", { type: "button", "data-task": one.task, onclick: () => takeExample(one.task) },
    pictures.length ? h("span", { class: "pictures" }, pictures) : h("span", { class: "blank" }, icon("picture")),
    h("span", { class: "words", title: one.texts[0] }, h("b", {}, words(one.task)), named(one.texts[0], [])));
}

function welcome() {
  const old = part.column.querySelector(".welcome");
  if (old) return old;
  const first = ["multi_turn/chain", "semantic_editing/background", "repainting/outpainting", "element_editing/text_remove", "layer_editing/decouple", "reference_generation/style_reference"];
  return h("section", { class: "welcome" },
    h("h2", {}, "What shall we make?"),
    h("p", {}, "Describe a picture, or add one and say what to change. Every answer can be taken further, undone, or taken another way."),
    h("div", { class: "cards" }, first.map((task) => examples.find((one) => one.task === task)).filter(Boolean).map(card)),
    button("grid", "All examples", openGallery));
}

// The tree: a column for each round, a lane for each branch; conversations stand side by side

function drawTree(changed) {
  const path = new Set(pathTo(view.head).map((one) => one.id));
  const parent = view.head && node(view.head).parents[0];
  part.nav.hidden = !view.nodes.length;
  part.undo.disabled = !view.head;
  part.redo.disabled = !undone.length;
  part.undo.title = parent ? `Undo: back to ${mention(parent)}` : "Undo";
  if (!changed) return;
  const spots = new Map(), children = new Map();   // node -> { column, lane }; node -> those made from it
  for (const one of view.nodes) {
    const from = one.parents.length && node(one.parents[0]) ? one.parents[0] : null;
    children.set(from, [...(children.get(from) || []), one.id]);
  }
  let columns = 0, high = 1;
  for (const start of children.get(null) || []) {
    let lanes = 0, wide = 0;
    const todo = [{ id: start, depth: 0, lane: 0 }];
    while (todo.length) {
      const { id, depth, lane } = todo.pop();
      const own = lane === null ? ++lanes : lane;   // the first to go on stays in the lane, the others open new ones
      spots.set(id, { column: columns + depth, lane: own });
      wide = Math.max(wide, depth + 1);
      (children.get(id) || []).map((next, place) => ({ id: next, depth: depth + 1, lane: place ? null : own })).reverse().forEach((next) => todo.push(next));
    }
    columns += wide;
    high = Math.max(high, lanes + 1);
  }
  const place = (id) => ({ x: 8 + spots.get(id).column * 64, y: 8 + spots.get(id).lane * 62 });
  const lines = view.nodes.filter((one) => one.parents.length && node(one.parents[0])).map((one) => {
    const a = place(one.parents[0]), b = place(one.id);
    const flat = a.y === b.y;
    const line = flat ? `M${a.x + 52} ${a.y + 26}H${b.x}` : `M${a.x + 26} ${a.y + 52}V${b.y + 14}Q${a.x + 26} ${b.y + 26} ${a.x + 38} ${b.y + 26}H${b.x}`;
    return h("path", { d: line, class: path.has(one.id) ? "now" : "" });
  });
  const thumbs = view.nodes.map((one) => {
    const { x, y } = place(one.id);
    return h("button", { type: "button", "data-node": one.id, style: `left: ${x}px; top: ${y}px`, class: path.has(one.id) ? "along" : "", tabindex: one.id === view.head || (!view.head && one === view.nodes[0]) ? "0" : "-1",
      "aria-current": String(one.id === view.head), "aria-label": `${mention(one.id)}: ${one.text}`, title: one.text, onclick: () => go(one.id) },
      h("img", { src: smallOf(one.id), alt: "", loading: "lazy" }), h("span", {}, mention(one.id)));
  });
  const focused = part.tree.contains(document.activeElement) && document.activeElement.dataset.node;
  part.tree.replaceChildren(h("div", { class: "field", style: `width: ${columns * 64 + 8}px; height: ${high * 62 + 6}px` }, h("svg", {}, lines), thumbs));
  const current = part.tree.querySelector('[aria-current="true"]');
  if (current) part.tree.scrollTo({ left: current.offsetLeft - part.tree.clientWidth + 120, top: current.offsetTop - (part.tree.clientHeight - current.offsetHeight) / 2 });
  if (focused) part.tree.querySelector(`[data-node="${focused}"]`)?.focus();
}

function walkTree(event) {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const thumbs = [...part.tree.querySelectorAll("button")];
  const next = step && thumbs[thumbs.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  thumbs.forEach((one) => one.setAttribute("tabindex", one === next ? "0" : "-1"));
  next.focus();
}

function go(id, forget = true) {
  if (forget) undone = [];
  trigger("go", { node: id });
  if (id === null) part.text.focus();
}

function undo() {
  if (!view.head) return;
  undone.push(view.head);
  go(node(view.head).parents[0] || null, false);
}

function redo() { if (undone.length) go(undone.pop(), false); }

// The composer

function drawComposer() {
  const busy = Boolean(view.running);
  part.send.replaceChildren(icon(busy ? "stop" : "send"), h("span", { class: "label" }, busy ? "Stop" : "Send"));
  part.send.setAttribute("aria-label", busy ? "Stop" : "Send");
  const source = sourceOf();
  part.paint.disabled = !source;
  part.text.placeholder = source ? "Say what to change; @ mentions a picture" : "Say what to make";
  const rounds = Math.min(pathTo(view.head).length, Number(settings.history === "" ? view.model.history : settings.history));
  const about = draft.uploads.length ? "Editing your picture" : source ? `Going on from ${mention(view.head)}` : "A new conversation";
  part.about.replaceChildren(...(source && !draft.uploads.length ? [h("img", { src: smallOf(view.head), alt: "" })] : []),
    h("span", {}, about + (view.head && rounds ? ` · the model sees ${rounds === 1 ? "1 earlier round" : rounds + " earlier rounds"}` : "")));
  const chips = draft.uploads.map((one, place) => h("div", { class: "chip", title: one.name },
    h("img", { src: address("uploads/" + one.id), alt: one.name }), h("i", {}, "@" + "abcdefghi"[place]),
    h("button", { type: "button", class: "drop", "aria-label": `Remove ${one.name}`, onclick: () => { draft.uploads.splice(place, 1); if (!place) clearMask(); drawComposer(); } }, icon("close"))));
  if (draft.mask || draft.extend) {
    const label = draft.extend ? "Larger canvas" : "Mask";
    chips.push(h("div", { class: draft.mask ? "chip dark" : "chip", title: label }, h("img", { src: draft.extend ? source.src : draft.mask, alt: label }), h("i", {}, label.split(" ").pop()),
      h("button", { type: "button", class: "drop", "aria-label": `Remove ${label.toLowerCase()}`, onclick: () => { clearMask(); drawComposer(); } }, icon("close"))));
  }
  part.tray.replaceChildren(...chips);
  part.next.replaceChildren(...(busy ? [] : draft.next.slice(0, 3)).map((text) => h("button", { type: "button", onclick: () => { part.text.value = text; draft.next = draft.next.filter((one) => one !== text); drawComposer(); part.text.focus(); } }, text)));
}

function drawNotice() {
  const notice = view.notice || (view.damaged.length ? { kind: "error", text: `${view.damaged.map(mention).join(", ")} cannot be read and ${view.damaged.length > 1 ? "are" : "is"} left out.` } : null);
  part.notice.hidden = !notice;
  if (!notice) return;
  part.notice.className = "notice " + notice.kind;
  part.notice.setAttribute("role", notice.kind === "error" ? "alert" : "status");
  part.notice.replaceChildren(h("p", {}, notice.text), h("button", { type: "button", "aria-label": "Dismiss", onclick: () => { view.notice = null; view.damaged = []; drawNotice(); } }, icon("close")));
}

function say(kind, text) { view.notice = { kind, text }; drawNotice(); }

function sourceOf() {
  if (draft.uploads.length) return { src: address("uploads/" + draft.uploads[0].id), width: draft.uploads[0].width, height: draft.uploads[0].height };
  const head = view && view.head && node(view.head);
  return head ? { src: answerOf(head.id), width: head.width, height: head.height } : null;
}

function clearMask() { draft.mask = null; draft.extend = null; draft.maskMode = "mark"; }

function send() {
  if (view.running) { trigger("stop"); return; }
  const number = (text) => (text === "" || text === null ? null : Number(text));
  if (!part.text.value.trim()) { part.text.focus(); return; }
  awaiting = true;
  undone = [];
  closePanel();
  trigger("send", {
    text: part.text.value, start: view.head, uploads: draft.uploads.map((one) => one.id), mask: draft.mask, mask_mode: draft.maskMode, extend: draft.extend,
    negative: settings.negative, steps: number(settings.steps), guidance: number(settings.guidance), seed: number(settings.seed),
    size: settings.width && settings.height ? [Number(settings.width), Number(settings.height)] : null,
    history: settings.history === "" ? view.model.history : Number(settings.history), count: Number(settings.count) || 1,
  });
}

function typed() {
  memory.write("words", part.text.value);
  const match = /(?:^|\s)@(\w*)$/.exec(part.text.value.slice(0, part.text.selectionStart));
  if (match) openMentions(match[1], true);
  else if (part.panel.dataset.kind === "mentions") closePanel();
}

function pressed(event) {
  if (part.panel.dataset.kind === "mentions" && !part.panel.hidden) {
    const choices = [...part.panel.querySelectorAll('[role="option"]')];
    const at = choices.findIndex((one) => one.getAttribute("aria-selected") === "true");
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && choices.length) { event.preventDefault(); choose(choices, (at + step + choices.length) % choices.length); return; }
    if ((event.key === "Enter" || event.key === "Tab") && choices[at]) { event.preventDefault(); choices[at].click(); return; }
    if (event.key === "Escape") { event.preventDefault(); closePanel(); return; }
  }
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!view.running) send(); }
}

function pasted(event) {
  const files = [...(event.clipboardData?.files || [])].filter((one) => one.type.startsWith("image/"));
  if (files.length) { event.preventDefault(); addFiles(files); }
}

async function post(path, body, name) {
  const response = await fetch(address(path), { method: "POST", body, headers: { "X-Ace-Studio": "1", "X-File-Name": encodeURIComponent(name || "") } });
  const said = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(said.error || `the studio answered ${response.status}: try again`);
  return said;
}

async function addFiles(files) {
  for (const file of files) {
    if (draft.uploads.length >= view.model.max_images) { say("error", `At most ${view.model.max_images} pictures fit in one message.`); break; }
    try {
      draft.uploads.push(await post("uploads", file, file.name));
      if (draft.uploads.length === 1) clearMask();
    } catch (error) { say("error", error.message); }
  }
  drawComposer();
  part.text.focus();
}

async function importSession() {
  const file = part.archive.files[0];
  root.querySelector("#menu").open = false;
  part.archive.value = "";
  if (!file) return;
  try { await post("session.zip", file, file.name); trigger("refresh"); } catch (error) { say("error", error.message); }
}

// Panels above the composer

function closePanel() {
  part.panel.hidden = true;
  delete part.panel.dataset.kind;
  root.querySelector("#settings").setAttribute("aria-expanded", "false");
  part.text.removeAttribute("aria-activedescendant");
}

function toggleSettings() {
  if (part.panel.dataset.kind === "settings") { closePanel(); return; }
  const field = (name, label, more, wide) => h("label", { class: wide ? "wide" : "" }, label,
    h("input", { type: "number", value: settings[name], "data-setting": name, oninput: (event) => { settings[name] = event.target.value; memory.write("settings", settings); drawComposer(); }, ...more }));
  part.panel.replaceChildren(h("div", { class: "settings" },
    field("negative", "Avoid (what the picture should not be)", { type: "text" }, true),
    field("steps", "Steps", { min: 1, max: 1000, placeholder: view.model.steps }),
    field("guidance", "Guidance", { min: 0, max: 100, step: 0.1, placeholder: view.model.guidance }),
    field("seed", "Seed", { min: 0, placeholder: "random" }),
    field("count", "Variants at once", { min: 1, max: view.model.max_variants }),
    field("history", "Earlier rounds that the model sees", { min: 0, max: view.model.max_images, placeholder: view.model.history }),
    field("width", "Width, px", { min: view.model.cell_px, step: view.model.cell_px, placeholder: "auto" }),
    field("height", "Height, px", { min: view.model.cell_px, step: view.model.cell_px, placeholder: "auto" })));
  part.panel.hidden = false;
  part.panel.dataset.kind = "settings";
  root.querySelector("#settings").setAttribute("aria-expanded", "true");
  part.panel.querySelector("input").focus();
}

function openMentions(typedSoFar, typing = false) {
  const choices = [
    ...draft.uploads.map((one, place) => ({ name: "@" + "abcdefghi"[place], src: address("uploads/" + one.id), text: one.name })),
    ...view.nodes.toReversed().map((one) => ({ name: mention(one.id), src: smallOf(one.id), text: one.text })),
  ].filter((one) => one.name.slice(1).startsWith(typedSoFar) || (typedSoFar && one.text.toLowerCase().includes(typedSoFar.toLowerCase()))).slice(0, 24);
  if (!choices.length) { closePanel(); if (!typing) say("info", "There is no picture to mention yet."); return; }
  const list = h("div", { class: "mentions", role: "listbox", "aria-label": "Pictures" }, choices.map((one, place) =>
    h("button", { type: "button", role: "option", id: "mention-" + place, "aria-selected": "false", "aria-label": `${one.name}: ${one.text}`, tabindex: "-1", onclick: () => insertMention(one.name, typing) },
      h("img", { src: one.src, alt: "" }), h("span", {}, one.name))));
  part.panel.replaceChildren(list);
  part.panel.hidden = false;
  part.panel.dataset.kind = "mentions";
  root.querySelector("#settings").setAttribute("aria-expanded", "false");
  choose([...list.children], 0);
  part.text.focus();
}

function choose(choices, place) {
  choices.forEach((one, number) => one.setAttribute("aria-selected", String(number === place)));
  choices[place].scrollIntoView({ block: "nearest" });
  part.text.setAttribute("aria-activedescendant", choices[place].id);
}

function insertMention(name, typing = false) {
  const at = part.text.selectionStart;
  let head = part.text.value.slice(0, at);
  head = typing ? head.replace(/@\w*$/, "") : head && !/\s$/.test(head) ? head + " " : head;
  part.text.value = `${head}${name} ${part.text.value.slice(at).replace(/^ /, "")}`;
  part.text.selectionStart = part.text.selectionEnd = head.length + name.length + 1;
  closePanel();
  part.text.focus();
  memory.write("words", part.text.value);
}

// Dialogs

function openDialog(title, body, end) {
  const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove(), onclick: (event) => { if (event.target === dialog) dialog.close(); } },
    h("div", { class: "top" }, h("h2", {}, title), button("close", "Close", () => dialog.close())), h("div", { class: "body" }, body), end ? h("div", { class: "end" }, end) : null);
  root.append(dialog);
  dialog.showModal();
  return dialog;
}

function openGallery() {
  const families = new Map();
  for (const one of examples) families.set(one.task.split("/")[0], [...(families.get(one.task.split("/")[0]) || []), one]);
  openDialog("Examples", [...families].map(([family, list]) => {
    const title = family.replaceAll("_", " ");
    return h("section", { class: "family" }, h("h3", {}, title[0].toUpperCase() + title.slice(1)), h("div", { class: "cards" }, list.map(card)));
  }));
}

async function takeExample(task) {
  root.querySelector("dialog")?.close();
  try {
    const given = await post("examples/" + task);
    draft = { ...emptyDraft(), uploads: given.uploads, mask: given.mask, next: given.texts.slice(1) };
    part.text.value = given.texts[0];
    if (view.head) go(null);
    drawComposer();
    part.text.focus();
  } catch (error) { say("error", error.message); }
}

function openEasel() {
  const source = sourceOf();
  if (!source) return;
  const scale = Math.max(1, Math.ceil(512 / Math.max(source.width, source.height)));
  const canvas = h("canvas", { width: source.width * scale, height: source.height * scale, tabindex: "0", "aria-label": "Picture to paint on: arrow keys move the brush, space paints" });
  const pen = canvas.getContext("2d");
  const ring = h("div", { class: "brush", hidden: true });
  const board = h("div", { class: "board", style: `--ratio: ${source.width / source.height}` }, h("img", { src: source.src, alt: "" }), canvas, ring);
  const sides = { left: 0, top: 0, right: 0, bottom: 0, ...draft.extend };
  let tab = draft.extend ? "extend" : "paint", erasing = false, last = null, at = { x: 0.5, y: 0.5 }, mode = draft.maskMode, colour = "#e4572e";
  const history = [];
  const size = h("input", { type: "range", min: "2", max: "60", value: "14", id: "brush-size", oninput: showRing });
  const stripes = h("canvas", { width: 8 * scale, height: 8 * scale });   // two tones, to be seen on any picture
  const tone = stripes.getContext("2d"), unit = stripes.width;
  tone.fillStyle = "#ffffff"; tone.fillRect(0, 0, unit, unit);
  tone.strokeStyle = "#d6217f"; tone.lineWidth = unit * 0.36;
  for (const shift of [-1, 0, 1]) { tone.beginPath(); tone.moveTo(shift * unit - unit, unit * 2); tone.lineTo(shift * unit + unit * 2, -unit); tone.stroke(); }
  const ink = () => (mode === "draw" ? colour : pen.createPattern(stripes, "repeat"));
  function recolour(on, fill) { on.globalCompositeOperation = "source-in"; on.fillStyle = fill; on.fillRect(0, 0, on.canvas.width, on.canvas.height); on.globalCompositeOperation = "source-over"; }
  const radius = () => (Number(size.value) / 200) * Math.max(canvas.width, canvas.height);
  function mark() { history.push(pen.getImageData(0, 0, canvas.width, canvas.height)); if (history.length > 30) history.shift(); }
  function paint(to) {
    pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = ink();
    pen.lineWidth = radius() * 2; pen.lineCap = pen.lineJoin = "round";
    const from = last || to;
    pen.beginPath(); pen.moveTo(from.x * canvas.width, from.y * canvas.height); pen.lineTo(to.x * canvas.width + 0.01, to.y * canvas.height); pen.stroke();
    last = to;
  }
  function showRing() {
    ring.hidden = tab !== "paint";
    ring.style.cssText = `left: ${at.x * 100}%; top: ${at.y * 100}%; width: ${(radius() * 200) / canvas.width}%; aspect-ratio: 1`;
  }
  const spot = (event) => { const box = canvas.getBoundingClientRect(); return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height }; };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); mark(); last = null; at = spot(event); paint(at); showRing(); });
  canvas.addEventListener("pointermove", (event) => { at = spot(event); if (event.buttons) paint(at); showRing(); });
  canvas.addEventListener("pointerup", () => { last = null; });
  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.01 : 0.05;
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (move) { at = { x: Math.min(1, Math.max(0, at.x + move[0])), y: Math.min(1, Math.max(0, at.y + move[1])) }; showRing(); event.preventDefault(); }
    if (event.key === " ") { mark(); last = null; paint(at); last = null; event.preventDefault(); }
  });
  function invert() {
    mark();
    const all = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let k = 3; k < all.data.length; k += 4) all.data[k] = 255 - all.data[k];
    pen.putImageData(all, 0, 0);
    recolour(pen, ink());
  }
  const way = (value, label) => h("label", {}, h("input", { type: "radio", name: "mask-mode", value, checked: mode === value, onchange: () => { mode = value; canvas.classList.toggle("drawing", mode === "draw"); colours.hidden = mode !== "draw"; recolour(pen, ink()); } }), label);
  const colours = h("label", { hidden: mode !== "draw" }, "Colour", h("input", { type: "color", value: colour, oninput: (event) => { colour = event.target.value; } }));
  const rub = button("rub", "Erase", () => { erasing = !erasing; rub.setAttribute("aria-pressed", String(erasing)); }, { class: "edged", "aria-pressed": "false" });
  const paintOptions = h("div", { class: "options" },
    h("fieldset", {}, h("legend", { class: "fine" }, "What you paint"), way("mark", "is what may change"), way("hide", "may change, and is hidden from the model"), way("draw", "is a drawing for the model to follow")),
    colours, h("label", {}, "Brush", size),
    h("div", { class: "row" }, rub,
      button("undo", "Undo stroke", () => { if (history.length) pen.putImageData(history.pop(), 0, 0); }, { class: "edged" }),
      button("compare", "Swap inside and outside", invert, { class: "edged", id: "invert" }),
      button("again", "Clear", () => { mark(); pen.clearRect(0, 0, canvas.width, canvas.height); }, { class: "edged" })),
    h("p", { class: "fine" }, "Outside the mask not one pixel changes."));
  const sliders = Object.keys(sides).map((side) => {
    const shown = h("output", {}, `${Math.round(sides[side] * 100)} %`);
    return h("label", {}, h("span", {}, side[0].toUpperCase() + side.slice(1) + " ", shown),
      h("input", { type: "range", min: "0", max: "100", step: "5", value: String(sides[side] * 100), "data-side": side, oninput: (event) => { sides[side] = Number(event.target.value) / 100; shown.textContent = `${event.target.value} %`; showCanvas(); } }));
  });
  const extendOptions = h("div", { class: "options" }, h("p", { class: "fine" }, "How much to add on each side, in shares of the picture."), sliders);
  const grown = h("div", { class: "board" });
  function showCanvas() {
    const across = 1 + sides.left + sides.right, down = 1 + sides.top + sides.bottom;
    const ratio = (source.width * across) / (source.height * down);
    grown.style.cssText = `--ratio: ${ratio}; aspect-ratio: ${ratio}`;
    grown.replaceChildren(h("img", { src: source.src, alt: "", style: `position: absolute; left: ${(sides.left / across) * 100}%; top: ${(sides.top / down) * 100}%; width: ${100 / across}%; height: ${100 / down}%` }));
  }
  const easel = h("div", { class: "easel" });
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "Kind of mask" });
  function show(which) {
    tab = which;
    tabs.replaceChildren(button("brush", "Paint", () => show("paint"), { "aria-pressed": String(tab === "paint") }), button("plus", "Extend the picture", () => show("extend"), { id: "extend", "aria-pressed": String(tab === "extend") }));
    easel.replaceChildren(...(tab === "paint" ? [board, paintOptions] : [grown, extendOptions]));
    showCanvas(); showRing();
  }
  function finish() {
    if (tab === "extend") {
      if (!Object.values(sides).some(Boolean)) { dialog.close(); return; }
      draft.extend = sides; draft.mask = null;
    } else {
      const small = h("canvas", { width: source.width, height: source.height });
      small.getContext("2d").drawImage(canvas, 0, 0, source.width, source.height);
      if (mode !== "draw") recolour(small.getContext("2d"), "#ffffff");
      const painted = small.getContext("2d").getImageData(0, 0, source.width, source.height).data.some((value, place) => place % 4 === 3 && value > 127);
      draft.extend = null; draft.mask = painted ? small.toDataURL("image/png") : null; draft.maskMode = mode;
    }
    dialog.close(); drawComposer(); part.text.focus();
  }
  show(tab);
  if (draft.mask) { const old = new Image(); old.onload = () => { pen.drawImage(old, 0, 0, canvas.width, canvas.height); if (mode !== "draw") recolour(pen, ink()); }; old.src = draft.mask; }
  const dialog = openDialog("Paint a mask", [tabs, h("div", { style: "height: 14px" }), easel],
    [h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { type: "button", class: "main", id: "use-mask", onclick: finish }, "Use it")]);
  canvas.classList.toggle("drawing", mode === "draw");
}

// The page as a whole

function switchTheme() {
  const dark = root.dataset.theme === "dark" || (root.dataset.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
  memory.write("theme", root.dataset.theme);
}

root.addEventListener("keydown", (event) => {
  const writing = event.target.matches("input, textarea, select");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !writing && !root.querySelector("dialog")) { event.preventDefault(); event.shiftKey ? redo() : undo(); }
  if (event.key === "Escape" && !root.querySelector("dialog")) { closePanel(); root.querySelectorAll("details.menu[open]").forEach((one) => { one.open = false; }); }
});
root.addEventListener("click", (event) => {
  root.querySelectorAll("details.menu[open]").forEach((one) => { if (!one.contains(event.target) || event.target.closest("a, button")) one.open = false; });
  if (!part.panel.hidden && !part.form.contains(event.target)) closePanel();
});
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]])
  root.addEventListener(name, (event) => {
    event.preventDefault();
    part.box.classList.toggle("dropping", over);
    if (name === "drop") addFiles([...event.dataTransfer.files].filter((one) => one.type.startsWith("image/")));
  });

watch("value", () => draw(props.value));
draw(props.value);
}
