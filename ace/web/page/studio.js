// The studio's page: draws what the server's session routes say, and asks them for what somebody wants.
//
// `view` is the session's tree, `live` what is being made in it (both the server's), `draft` the message being written.
// Drafts and messages that are not answered yet live in the browser's own store, so that neither a reload nor a server
// that stops loses words, pictures or masks. All text that comes from people goes into the page as text, never as markup.

import { askText, button, confirmed, h, icon, openDialog } from "./dom.js";
import { openEasel } from "./easel.js";
import { listLessons, openTeach } from "./lessons.js";
import { ask, follow, keep, kept } from "./server.js";

const PREVIEWS = 32;             // of each picture on its way, at most
const READABLE = ["image/png", "image/jpeg", "image/webp"];   // what the server opens; the browser converts the rest
const root = document.querySelector("#studio");
const memory = { read(key) { try { return JSON.parse(localStorage.getItem("ace-studio-" + key)); } catch { return null; } },
                 write(key, value) { try { localStorage.setItem("ace-studio-" + key, JSON.stringify(value)); } catch { /* private window */ } } };
let model = null;                // what the server says of the model
let session = null;              // the session's address
let view = null;                 // the session's tree: name, head, nodes, damaged
let live = { requests: [] };     // what is being made, and what ended a moment ago
let draft = emptyDraft();        // the message being written
let examples = [];
let selects = false;             // whether a click can select a thing
let lessons = [];                // the adapters that are here, and the lessons that make some
let notice = null;               // { kind, text, action }
let state = "open";              // whether the server can be heard
let undone = [];                 // where undo came from, for redo
let lastShown = null;            // id of the turn at the end of the talk
let shownView = null;            // what of the tree is drawn
let went = false;                // somebody moved or asked for something: the page may scroll to it
const pending = new Map();       // request -> the draft that it was made of, until it is answered
const posted = new Set();        // messages that are with the server, as far as this page knows
const waiting = new Map();       // message -> the request whose answer it goes on from
const mine = new Set();          // requests of this page whose end is to be told
const told = new Set();          // requests whose end was told
const drifts = new Map();        // node -> how far it drifted
const comparing = new Map();     // node -> place of the slider, in percent
const drawn = new Map();         // node -> { key, element }: turns that need not be drawn again

const node = (id) => view.nodes.find((one) => one.id === id);
const mention = (id) => "@" + Number(id);
const answerOf = (id) => `${session}/nodes/${id}/image`;
const pictureOf = (one) => (one.medium === "clip" ? `${answerOf(one.id)}?format=png` : answerOf(one.id));   // of a clip its first frame
const smallOf = (id) => `${session}/nodes/${id}/image?format=thumbnail`;
const words = (task) => task.split("/").pop().replaceAll("_", " ");
const isRunning = (one) => one.status === "waiting" || one.status === "running";
const running = () => live.requests.filter(isRunning);
function emptyDraft() { return { text: "", files: [], edit: null, mask: null, maskMode: "mark", extend: null, next: [] }; }
const isEmpty = (one) => !one.text.trim() && !one.files.length && !one.mask && !one.extend;

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
    (part.teach = button("teach", "Teach", teach, { id: "teach", hidden: true })),
    button("theme", "Light or dark", switchTheme, { id: "theme" }),
    h("details", { class: "menu right", id: "menu" }, h("summary", { "aria-label": "Session" }, icon("more")),
      h("div", {},
        (part.export = h("a", { class: "button", download: "", id: "export" }, icon("save"), "Export this session")),
        button("plus", "Import a session", () => part.archive.click(), { id: "import" }),
        button("pen", "Rename this session", renameSession, { id: "rename-session" }),
        button("close", "Delete all pictures", removeAll, { id: "remove-all" }))),
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
      (part.text = h("textarea", { id: "say", rows: "1", "aria-label": "Your message", "aria-autocomplete": "list", placeholder: "Say what to make", maxlength: "4000", oninput: typed, onkeydown: pressed, onpaste: pasted })),
      h("div", { class: "tools" },
        button("picture", "Add pictures", () => part.file.click(), { id: "add" }),
        button("at", "Mention", () => openMentions(""), { id: "mention" }),
        (part.paint = button("brush", "Paint a mask", openPainter, { id: "paint" })),
        button("tune", "Settings", toggleSettings, { id: "settings", "aria-expanded": "false" }),
        (part.send = h("button", { type: "submit", class: "main push send", id: "send" }))))),
    (part.file = h("input", { type: "file", id: "file", accept: "image/*", multiple: true, hidden: true, onchange: () => { addFiles([...part.file.files]); part.file.value = ""; } })))),
  (part.live = h("div", { class: "unseen", role: "status", "aria-live": "polite" })));

root.dataset.theme = memory.read("theme") || "auto";
const settings = { steps: "", guidance: "", seed: "", width: "", height: "", history: "", count: "1", negative: "", detail: "full", focus: "auto", feather: "", adapters: {}, ...memory.read("settings") };
const chosenAdapters = () => lessons.filter((one) => one.usable && settings.adapters[one.name]).map((one) => `${one.name}:${settings.adapters[one.name]}`);

// Drawing

function draw() {
  if (!view) return;
  const before = shownView;
  shownView = { head: view.head, nodes: view.nodes };
  if (before && before.head !== view.head && !editsFirst()) clearMask();   // it was the answer's
  part.where.textContent = `${model.name} · ${view.name}`;
  part.export.href = `${session}/archive`;
  drawTree(!before || before.head !== view.head || before.nodes !== view.nodes);
  drawTalk(before);
  drawComposer();
  drawNotice();
}

function drawTalk(before) {
  const follows = !before || part.talk.scrollHeight - part.talk.scrollTop - part.talk.clientHeight < 160;
  const turns = pathTo(view.head).map(turnOf);
  const busy = running();
  if (!turns.length && !busy.length) turns.push(welcome());
  turns.push(...busy.map(runningTurn), ...[...waiting.keys()].map(waitingTurn));
  const column = part.column;
  turns.forEach((turn, place) => { if (column.children[place] !== turn) column.insertBefore(turn, column.children[place] || null); });
  while (column.children.length > turns.length) column.lastChild.remove();
  const last = turns.at(-1);
  // Whoever has scrolled away to read something else stays there, unless they went elsewhere in the tree themselves.
  if (last.id !== lastShown && (follows || went)) requestAnimationFrame(() => reveal(last, before ? "smooth" : "auto"));
  lastShown = last.id;
  went = false;
}

// Scroll to the end of a turn, but never so far that the top of its picture is out of sight.
function reveal(turn, behavior) {
  const box = part.talk.getBoundingClientRect(), picture = turn.querySelector(".stage") || turn;
  const end = turn.getBoundingClientRect().bottom + 20 - box.bottom, most = picture.getBoundingClientRect().top - 20 - box.top;
  part.talk.scrollBy({ top: Math.min(end, most), behavior });
}

function turnOf(one) {
  const siblings = view.nodes.filter((other) => (other.parents[0] || null) === (one.parents[0] || null) && (one.parents.length || other.text === one.text));
  const key = JSON.stringify([siblings.map((s) => s.id), one.title, one.parents, one.id === view.head, drifts.get(one.id), comparing.has(one.id)]);
  const kept = drawn.get(one.id);
  if (kept && kept.key === key) return kept.element;
  const open = kept && kept.element.querySelector("details.made").open;
  const turn = h("article", { class: "turn", id: "turn-" + one.id, "aria-label": `${mention(one.id)}: ${called(one)}` }, asked(one), answered(one, siblings));
  turn.querySelector("details.made").open = Boolean(open);
  drawn.set(one.id, { key, element: turn });
  return turn;
}

function asked(one) {
  const shown = one.inputs.map((input, place) => h("div", { class: "shown" },
    h("img", { src: input.picture, alt: input.node ? `answer ${mention(input.node)}` : `picture ${place + 1}` }),
    input.mask && h("div", { class: "mask", style: `mask-image: url("${input.mask}")` }),
    input.node && h("i", {}, mention(input.node))));
  return h("div", { class: "asked" }, shown.length ? h("div", { class: "inputs" }, shown) : null, h("p", {}, named(one.text, one.inputs)));
}

// The names {image}, {image1}, … as a person says them.
const plain = (text) => text.replace(/\{image(\d*)\}/g, (_, number) => (/\{image\d/.test(text) ? `picture ${Number(number || 0) + 1}` : "the picture"));

const called = (one) => one.title || plain(one.text);

function named(text, inputs) {
  const several = /\{image\d/.test(text);
  return text.split(/(\{image\d*\})/).map((piece) => {
    const match = /^\{image(\d*)\}$/.exec(piece);
    if (!match) return piece;
    const place = Number(match[1] || 0), input = inputs[place], numbered = `picture ${place + 1}`;
    if (!input) return several ? numbered : "the picture";
    return h("span", { class: "name" }, h("img", { src: input.picture, alt: "" }), input.node ? mention(input.node) : numbered);
  });
}

function stageStyle(width, height) {
  const wide = Math.min(Math.max(width, 384), 720);
  return `--aspect: ${width} / ${height}; --wide: min(${wide}px, ${Math.round((70 * width) / height)}vh)`;
}

function beforeOf(one) {
  if (one.inputs.length) return one.inputs[0].picture;
  return one.parents.length && one.rounds ? pictureOf(node(one.parents[0])) : null;
}

function answered(one, siblings) {
  const isHead = one.id === view.head;
  const before = beforeOf(one);
  const stage = h("div", { class: "stage", style: stageStyle(one.width, one.height) },
    one.medium === "clip"
      ? h("video", { src: `${answerOf(one.id)}?format=mp4`, "aria-label": `${mention(one.id)}: ${called(one)}`, width: one.width, height: one.height, controls: true, loop: true, playsinline: true })
      : h("img", { src: answerOf(one.id), alt: `${mention(one.id)}: ${called(one)}`, width: one.width, height: one.height }));
  if (comparing.has(one.id) && before) {
    const place = (value) => { comparing.set(one.id, value); stage.style.setProperty("--at", value + "%"); };
    stage.append(
      h("img", { class: "before", src: before, alt: "before" }), h("div", { class: "edge" }),
      h("span", { class: "tag", style: "left: 8px" }, "before"), h("span", { class: "tag", style: "right: 8px" }, "after"),
      h("input", { type: "range", min: "0", max: "100", step: "1", value: comparing.get(one.id), "aria-label": "How much of the picture before is shown", oninput: (event) => place(event.target.value) }));
    place(comparing.get(one.id));
  }
  const compare = () => { comparing.has(one.id) ? comparing.delete(one.id) : comparing.set(one.id, 50); draw(); };
  const save = (suffix, label) => h("a", { class: "button", href: `${answerOf(one.id)}?format=${suffix}`, download: `ace-${one.id}.${suffix}` }, label);
  const close = (then) => (event) => { event.target.closest("details").open = false; then(); };
  const bar = h("div", { class: "bar" },
    button("again", "Try again", () => { act(one.id, "again", { n: 1 }); }, { class: "again" }),
    button("pen", "Edit and resend", () => resend(one), { class: "resend" }),
    before && button("compare", "Compare", compare, { class: "compare", "aria-pressed": String(comparing.has(one.id)) }),
    !isHead && button("branch", "Go on from here", () => go(one.id), { class: "branch" }),
    h("details", { class: "menu", ontoggle: placeMenu }, h("summary", { "aria-label": "Download" }, icon("save"), h("span", { class: "label" }, "Download")),
      h("div", {}, save("png", "PNG, exact"), save("jpeg", "JPEG"), save("webp", "WebP, exact"))),
    h("details", { class: "menu", ontoggle: placeMenu }, h("summary", { "aria-label": "More" }, icon("more")),
      h("div", {},
        button("many", "Four variants", close(() => act(one.id, "again", { n: 4 })), { class: "variants" }),
        button("at", "Mention", close(() => insertMention(mention(one.id)))),
        button("pen", "Rename", close(() => rename(one)), { class: "rename" }),
        button("close", "Delete", close(() => remove(one)), { class: "remove" }),
        button("check", "Make again and compare", close(() => act(one.id, "replay", {})), { class: "replay" }))));
  const facts = [["Seed", one.seed], ["Steps", one.steps], ["Guidance", one.guidance], ["Worked at", one.size.join("×") + " px"],
    ["Earlier rounds seen", one.rounds], ["Avoided", one.negative], ["Adapters", (one.adapters || []).join(", ")], ["Model", `${one.model} ${one.model_sha256.slice(0, 12)}`]];
  const drift = drifts.get(one.id);
  return h("div", { class: "answer" }, stage,
    siblings.length > 1 ? h("div", { class: "siblings", role: "group", "aria-label": "Variants" }, siblings.map((other) =>
      h("button", { type: "button", "aria-label": `Variant ${mention(other.id)}`, "aria-current": String(other.id === one.id), onclick: () => go(other.id) }, h("img", { src: smallOf(other.id), alt: "" })))) : null,
    bar,
    drift ? h("p", { class: "fine drift" }, drift[0].toUpperCase() + drift.slice(1)) : null,
    h("details", { class: "made" }, h("summary", {}, `${mention(one.id)}${one.title ? ` “${one.title}”` : ""} · how it was made`),
      h("dl", {}, facts.filter(([, value]) => value !== "" && value !== 0).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]))));
}

// A menu near the end of the talk opens upwards, where it can be seen.
function placeMenu(event) {
  const menu = event.target, box = menu.querySelector("div").getBoundingClientRect();
  menu.classList.remove("up");
  if (menu.open && menu.getBoundingClientRect().bottom + box.height + 8 > part.talk.getBoundingClientRect().bottom) menu.classList.add("up");
}

function runningTurn(one) {
  const id = "running-" + one.id;
  const turn = part.column.querySelector("#" + CSS.escape(id)) || h("article", { class: "turn running", id });
  const source = one.parent ? node(one.parent) : null;
  const waiting = stageStyle(source ? source.width : 64, source ? source.height : 64);
  const eta = one.eta_s === null ? "starting" : one.eta_s < 1 ? "a moment" : `about ${Math.ceil(one.eta_s)} s`;
  const from = one.kind === "replay" ? `Making ${mention(one.parent)} again` : one.parent && one.parent !== view.head ? `From ${mention(one.parent)}` : "";
  const sent = pending.get(one.id);
  const pictures = (sent ? sent.files : []).map((file) => h("div", { class: "shown" }, h("img", { src: file.url, alt: "" })));
  const old = turn.querySelector(".previews");
  const shown = old && old.dataset.key === one.previews.join() ? old : h("div", { class: one.n > 1 ? "previews many" : "previews", "data-key": one.previews.join() },
    one.previews.length ? one.previews.map((src) => preview(src, waiting)) : h("div", { class: "stage waiting", style: waiting }));
  const progress = one.status === "waiting" ? "Waiting for its turn" : `Step ${Math.floor(one.steps_done / one.n)} of ${Math.round(one.steps / one.n)} · ${eta}`;
  turn.replaceChildren(
    one.kind === "replay" ? "" : h("div", { class: "asked" }, pictures.length ? h("div", { class: "inputs" }, pictures) : null, h("p", {}, named(one.prompt, []))),
    h("div", { class: "answer", "aria-busy": "true" },
      one.kind === "replay" ? "" : shown,
      h("progress", { max: String(one.steps || 1), value: String(one.steps_done), "aria-label": "Progress" }),
      h("p", { class: "fine progress" }, from ? `${from} · ${progress}` : progress),
      button("stop", "Stop", () => stop(one.id), { class: "edged stop" })));
  return turn;
}

function waitingTurn(id) {
  const place = "waiting-" + id, kept = part.column.querySelector("#" + CSS.escape(place));
  return kept || h("article", { class: "turn waiting", id: place },
    h("div", { class: "asked" }, h("p", {}, pending.get(id).text)),
    h("div", { class: "answer" }, h("p", { class: "fine" }, "Goes on from the answer that is being made"),
      button("close", "Take it back", () => { waiting.delete(id); for (const [other, before] of waiting) if (before === id) waiting.set(other, running().at(-1)?.id); bringBack(id, "info", "Taken back."); draw(); }, { class: "edged" })));
}

// A preview has the shape of its picture, whatever the one before it had.
function preview(src, shape) {
  const stage = h("div", { class: "stage", style: shape });
  stage.append(h("img", { src, alt: "preview", onload: (event) => { stage.style.setProperty("--aspect", `${event.target.naturalWidth} / ${event.target.naturalHeight}`); } }));
  return stage;
}

function card(one) {
  const pictures = one.pictures.map((name) => h("img", { src: "/page/examples/" + name, alt: "", loading: "lazy" }));
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
    model.about ? h("p", { class: "fine about-model" }, `${model.name}: ${model.about}.`, model.name === "ace-tiny" ? " It is there to try everything with, at once and without a GPU. It has never seen a photograph; for those, start with " : null,
      model.name === "ace-tiny" ? h("code", {}, "ace chat --model ace-0.6b-512") : null, model.name === "ace-tiny" ? ", or teach it an edit of your own." : null) : null,
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
      "aria-current": String(one.id === view.head), "aria-label": `${mention(one.id)}: ${called(one)}`, title: called(one), onclick: () => go(one.id) },
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

// What somebody does

async function refresh() {
  const read = await ask("GET", session);
  const size = (text) => text.split("x").map(Number);
  view = {
    name: read.name, head: read.head, damaged: read.damaged, labels: read.labels,
    nodes: read.nodes.map((one) => {
      const [width, height] = size(one.image_size);
      return { ...one, text: one.instruction, width, height, size: size(one.size), guidance: one.guidance_scale, negative: one.negative_prompt, rounds: one.history,
               inputs: one.inputs.map((input) => ({ node: input.node, picture: input.image, mask: input.mask })) };
    }),
  };
  draw();
  readDrifts();
}

// The newest first, one after the other: a long conversation takes a while, and nobody waits for it.
async function readDrifts() {
  for (const one of pathTo(view.head).reverse()) {
    if (drifts.has(one.id)) continue;
    drifts.set(one.id, "");
    try {
      const found = await ask("GET", `${session}/nodes/${one.id}/drift`);
      drifts.set(one.id, [found.text, ...found.notes].filter(Boolean).join(" · "));
      if (drifts.get(one.id)) draw();
    } catch { drifts.delete(one.id); return; }
  }
}

let reading = Promise.resolve();
const refreshed = () => (reading = reading.then(refresh).catch((error) => { if (error.status) say("error", error.message); }));

async function heard(event) {
  const before = live;
  live = event;
  if (!view || event.head !== view.head || event.num_nodes !== view.nodes.length + view.damaged.length || event.labels !== view.labels) await refreshed();
  for (const one of live.requests) if (!isRunning(one) && !told.has(one.id)) ended(one, before);
  sendNext();
  draw();
}

function ended(one, before) {
  told.add(one.id);
  const sent = pending.get(one.id);
  if (!sent && !mine.has(one.id) && !before.requests.some((other) => other.id === one.id && isRunning(other))) return;
  mine.delete(one.id);
  if (one.status === "done") {
    forget(one.id);
    if (one.replay) say("info", sayReplay(one.replay));
    else part.live.textContent = `Done: ${mention(one.nodes[0])}`;
  } else if (sent) bringBack(one.id, one.status === "cancelled" ? "info" : "error", one.status === "cancelled" ? "Stopped. Nothing was kept." : one.message);
  else say(one.status === "cancelled" ? "info" : "error", one.status === "cancelled" ? "Stopped. Nothing was kept." : one.message);
}

function sayReplay(replay) {
  const name = mention(replay.node);
  if (replay.same_pixels) return `${name} made again: every pixel is the same.`;
  const why = replay.differences.join("; ") || "nothing that the recipe knows of differs";
  return `${name} made again: pixels differ by up to ${replay.largest_difference} of 255 levels (${why}).`;
}

function forget(id) { pending.delete(id); waiting.delete(id); posted.delete(id); keep("pending:" + id, null); }

// A message that is sent while an answer is made waits here and goes on from that answer, in its turn.
function sendNext() {
  for (const [id, before] of waiting) {
    const answer = live.requests.find((one) => one.id === before);
    if (answer ? isRunning(answer) : posted.has(before)) continue;
    const sent = pending.get(id), went = answer && answer.status === "done";
    waiting.delete(id);
    delete sent.after;
    if (!went) { bringBack(id, "info", "The answer that it was to go on from was not made."); continue; }
    sent.parent = answer.nodes[0];
    post(id, sent);
  }
}

// A message that was not answered goes back to where it was written, or waits beside what is written there now.
function bringBack(id, kind, text) {
  const sent = pending.get(id);
  if (!sent) return;   // it was brought back already
  posted.delete(id);
  const put = () => { forget(id); draft = sent; part.text.value = sent.text; keepDraft(); notice = null; drawComposer(); drawNotice(); part.text.focus(); };
  if (isEmpty(draft)) { put(); say(kind, text); } else say(kind, text, { label: "Bring the message back", act: put });
}

// After a pause: what the server knows nothing of was never answered. Whatever cannot be asked now is asked again.
let settling = null;
async function settle() {
  clearTimeout(settling);
  for (const id of [...pending.keys()]) {
    if (waiting.has(id) || live.requests.some((one) => one.id === id)) continue;
    try {
      const found = await ask("GET", `/v1/requests/${id}`);
      if (found.status === "done") forget(id);
      else if (!isRunning(found)) bringBack(id, "error", found.message || "It was not answered.");
    } catch (error) {
      if (error.status === 404) bringBack(id, "error", "The server was stopped before it answered.");
      else settling = setTimeout(settle, 1000);
    }
  }
}

function setState(next) {
  const before = state;
  state = next;
  root.dataset.state = next;
  if (next === "open" && before !== "open") { notice = null; refreshed().then(settle).then(draw); }
  if (next !== "open") live = { requests: [] };   // nobody knows what goes on there
  draw();
}

async function go(id, forgetUndone = true) {
  if (forgetUndone) undone = [];
  const before = view.head;
  view.head = id;
  went = true;
  notice = null;
  draw();
  if (id === null) part.text.focus();
  try { await ask("PUT", `${session}/head`, { node: id }); } catch (error) { view.head = before; say("error", error.message); draw(); }
  refreshed();
}

// "Edit and resend": the message as it was, where it was written. What it was made from is what it goes on from again;
// the other pictures come along, those that are answers by their names.
async function resend(one) {
  const parent = one.parents[0] || null, files = [];
  let text = one.text, mask = null, edit = null;
  const file = async (address, name) => readFile(new File([await (await fetch(address)).blob()], name, { type: "image/png" }));
  try {
    for (const [place, input] of one.inputs.entries()) {
      const name = place ? `{image${place}}` : text.includes("{image}") ? "{image}" : "{image0}";
      if (input.node && (input.node !== parent || place)) { text = text.replaceAll(name, mention(input.node)); continue; }
      if (input.node) { text = text.replaceAll(name, mention(input.node)); continue; }
      files.push({ ...(await file(input.picture, `picture-${place + 1}.png`)) });
      if (place === 0) edit = true;
      text = text.replaceAll(name, "@" + "abcdefghi"[files.length - 1]);
    }
    const painted = one.inputs[0]?.mask;
    if (painted) { const blob = await (await fetch(painted)).blob(); mask = { blob, url: URL.createObjectURL(blob) }; }
  } catch { say("error", "A picture of this message cannot be read: try again."); return; }
  await go(parent);
  draft = { ...emptyDraft(), files: files.map((one) => ({ ...one, url: URL.createObjectURL(one.blob) })), edit, mask };
  write(text);
  drawComposer();
  part.text.focus();
}

function rename(one) {
  askText(root, `A name for ${mention(one.id)}`, one.title || "", async (title) => {
    try { await ask("PATCH", `${session}/nodes/${one.id}`, { title }); await refreshed(); } catch (error) { say("error", error.message); }
  });
}

function renameSession() {
  root.querySelector("#menu").open = false;
  askText(root, "A name for this session", view.name, async (name) => {
    try { await ask("PATCH", session, { name }); await refreshed(); } catch (error) { say("error", error.message); }
  });
}

function removeAll() {
  root.querySelector("#menu").open = false;
  const count = view.nodes.length;
  confirmed(root, `Delete ${count === 1 ? "the picture" : `all ${count} pictures`} of this session?`, "Delete", async () => {
    try { await ask("DELETE", `${session}/nodes`); undone = []; await refreshed(); } catch (error) { say("error", error.message); }
  });
}

function remove(one) {
  const after = view.nodes.filter((other) => other.parents.includes(one.id)).length;
  const more = after ? " What was made from it stays." : "";
  confirmed(root, `Delete ${mention(one.id)}?${more}`, "Delete", async () => {
    try { await ask("DELETE", `${session}/nodes/${one.id}`); undone = []; await refreshed(); } catch (error) { say("error", error.message); }
  });
}

function undo() {
  if (!view.head) return;
  undone.push(view.head);
  go(node(view.head).parents[0] || null, false);
}

function redo() { if (undone.length) go(undone.pop(), false); }

async function act(id, what, fields) {
  const request = crypto.randomUUID();
  mine.add(request);
  notice = null;
  went = true;
  try { await ask("POST", `${session}/nodes/${id}/${what}`, { detached: true, partial_images: PREVIEWS, ...fields }, { "X-Client-Request-Id": request }); }
  catch (error) { say("error", error.message); }
}

async function stop(id) {
  try { await ask("DELETE", `/v1/requests/${id}`); } catch (error) { if (error.status !== 404) say("error", error.message); }
}

// The composer

// Whether the first picture that is sent along is what is edited: as it was chosen, else in a new conversation.
const editsFirst = () => Boolean(draft.files.length) && (view.head ? draft.edit === true : draft.edit !== false || !model.references_apart);

function drawComposer() {
  const busy = running();
  const stops = busy.length && isEmpty(draft);
  part.send.replaceChildren(icon(stops ? "stop" : "send"), h("span", { class: "label" }, stops ? "Stop" : "Send"));
  part.send.setAttribute("aria-label", stops ? "Stop" : "Send");
  part.send.disabled = state !== "open";
  const source = sourceOf();
  part.paint.disabled = !source || model.masks === false;
  part.text.placeholder = source ? "Say what to change; @ mentions a picture" : "Say what to make";
  const rounds = Math.min(pathTo(view.head).length, Number(settings.history === "" ? model.max_history : settings.history));
  const first = editsFirst(), references = draft.files.length - (first ? 1 : 0);
  const about = first ? "Editing your picture" : view.head ? `Going on from ${mention(view.head)}` : "A new conversation";
  const more = [
    references && (references === 1 ? "1 reference" : `${references} references`),
    view.head && rounds && model.max_history && `the model sees ${rounds === 1 ? "1 earlier round" : rounds + " earlier rounds"}`,
    settings.seed !== "" && `seed ${settings.seed}`,
    Number(settings.count) > 1 && `${settings.count} variants`,
    settings.width && settings.height && `${settings.width}×${settings.height} px`,
    settings.negative && "something to avoid",
    source && !draft.mask && !draft.extend && settings.detail === "model" && "the model's own picture",
    chosenAdapters().length && `with ${chosenAdapters().map((one) => one.replace(/:1$/, "").replace(":", " ")).join(", ")}`,
  ].filter(Boolean);
  part.about.replaceChildren(...(view.head && !first ? [h("img", { src: smallOf(view.head), alt: "" })] : []), h("span", {}, [about, ...more].join(" · ")));
  const chips = draft.files.map((file, place) => {
    const edits = first && place === 0;
    return h("div", { class: edits ? "chip edits" : "chip", title: file.name },
      h("button", { type: "button", class: "pick", "aria-pressed": String(edits), "aria-label": edits ? `${file.name} is edited; use it as a reference` : `Edit ${file.name}`, title: edits ? "This one is edited" : "Edit this one", onclick: () => pick(place, edits) }, h("img", { src: file.url, alt: file.name })),
      h("i", {}, "@" + "abcdefghi"[place]), edits ? h("b", {}, "edit") : null,
      h("button", { type: "button", class: "drop", "aria-label": `Remove ${file.name}`, onclick: () => drop(place) }, icon("close")));
  });
  if (draft.mask || draft.extend) {
    const label = draft.extend ? "Larger canvas" : "Mask";
    chips.push(h("div", { class: draft.mask ? "chip dark" : "chip", title: label }, h("img", { src: draft.extend ? source.src : draft.mask.url, alt: label }), h("i", {}, label.split(" ").pop()),
      h("button", { type: "button", class: "drop", "aria-label": `Remove ${label.toLowerCase()}`, onclick: () => { clearMask(); keepDraft(); drawComposer(); } }, icon("close"))));
  }
  part.tray.replaceChildren(...chips);
  part.next.replaceChildren(...(busy.length ? [] : draft.next.slice(0, 3)).map((text) => h("button", { type: "button", onclick: () => { write(text); draft.next = draft.next.filter((one) => one !== text); keepDraft(); drawComposer(); part.text.focus(); } }, named(text, []))));
}

function drawNotice() {
  const away = { away: "The server does not answer. What you write is kept; the page goes on when it is back.", locked: "ace chat was started again: open the link that it printed. What you wrote is kept." }[state];
  const damaged = view && view.damaged.length ? `${view.damaged.map(mention).join(", ")} cannot be read and ${view.damaged.length > 1 ? "are" : "is"} left out.` : null;
  const shown = away ? { kind: "error", text: away } : notice || (damaged && { kind: "error", text: damaged });
  part.notice.hidden = !shown;
  if (!shown) return;
  part.notice.className = "notice " + shown.kind;
  part.notice.setAttribute("role", shown.kind === "error" ? "alert" : "status");
  part.notice.replaceChildren(h("p", {}, shown.text),
    shown.action ? h("button", { type: "button", class: "edged", onclick: shown.action.act }, shown.action.label) : "",
    away ? "" : h("button", { type: "button", "aria-label": "Dismiss", onclick: () => { notice = null; if (view) view.damaged = []; drawNotice(); } }, icon("close")));
}

function say(kind, text, action = null) { notice = { kind, text, action }; drawNotice(); }

function sourceOf() {
  if (editsFirst()) return { src: draft.files[0].url, width: draft.files[0].width, height: draft.files[0].height };
  const head = view && view.head && node(view.head);
  return head ? { src: pictureOf(head), width: head.width, height: head.height } : null;
}

function clearMask() { draft.mask = null; draft.extend = null; draft.maskMode = "mark"; }

// "Edit this one": the picture comes first; taken back, the answer is edited, or nothing where a model can do that.
function pick(place, edits) {
  if (edits && !view.head && !model.references_apart) return;
  draft.files.unshift(...draft.files.splice(place, 1));
  draft.edit = !edits;
  clearMask();
  keepDraft();
  drawComposer();
}

function drop(place) {
  const [gone] = draft.files.splice(place, 1);
  if (!draft.files.length || (place === 0 && draft.edit)) draft.edit = null;
  if (place === 0) clearMask();
  URL.revokeObjectURL(gone.url);
  keepDraft();
  drawComposer();
}

// Drafts as the browser keeps them, without the addresses that are this page's only.
const stored = (one) => ({ ...one, files: one.files.map(({ url, ...file }) => file), mask: one.mask && { blob: one.mask.blob } });
const shownAgain = (one) => ({ ...emptyDraft(), ...one, files: one.files.map((file) => ({ ...file, url: URL.createObjectURL(file.blob) })), mask: one.mask && { ...one.mask, url: URL.createObjectURL(one.mask.blob) } });
function keepDraft() { keep("draft", stored(draft)); }
function write(text) { part.text.value = text; draft.text = text; keepDraft(); }

async function send() {
  if (running().length && isEmpty(draft)) { stop(running().at(-1).id); return; }
  if (!part.text.value.trim()) { part.text.focus(); return; }
  if (state !== "open") { drawNotice(); return; }
  if (Boolean(settings.width) !== Boolean(settings.height)) { say("error", "A size needs width and height: give both, or neither."); return; }
  const id = crypto.randomUUID(), sent = { ...draft, parent: view.head, first: editsFirst(), settings: { ...settings, adapters: chosenAdapters().join(",") } };
  const last = [...waiting.keys()].at(-1) || [...posted].filter((one) => pending.get(one)?.parent === view.head).at(-1) || running().filter((one) => one.kind === "turn" && one.parent === view.head).at(-1)?.id;
  if (last && !sent.first) { sent.after = last; waiting.set(id, last); }   // a picture of its own waits for nothing
  pending.set(id, sent);
  keep("pending:" + id, stored(sent));
  draft = { ...emptyDraft(), next: sent.next };
  part.text.value = "";
  keepDraft();
  undone = [];
  notice = null;
  went = true;
  closePanel();
  draw();
  if (!waiting.has(id)) await post(id, sent);
}

async function post(id, sent) {
  posted.add(id);
  try { await ask("POST", `${session}/turns`, turnOfDraft(sent), { "X-Client-Request-Id": id }); }
  catch (error) { bringBack(id, "error", error.message); }
}

function turnOfDraft(sent) {
  const form = new FormData(), { first, settings } = sent;
  const set = (name, value) => { if (value !== "" && value !== null && value !== undefined) form.append(name, value); };
  set("prompt", sent.text);
  set("parent", sent.parent || "none");
  set("detached", "true");
  set("partial_images", String(PREVIEWS));
  sent.files.forEach((file, place) => form.append(first && place === 0 ? "photo" : "image", file.blob, file.name));
  if (sent.mask) form.append(sent.maskMode === "draw" ? "drawing" : "mask", sent.mask.blob, sent.maskMode === "draw" ? "drawing.png" : "mask.png");
  if (sent.mask && sent.maskMode === "hide") set("hide", "true");
  if (sent.extend) set("extend", JSON.stringify(sent.extend));
  set("negative_prompt", settings.negative);
  set("steps", settings.steps);
  set("guidance_scale", settings.guidance);
  set("seed", settings.seed);
  set("max_history", settings.history);
  set("n", settings.count);
  if (sent.mask || sent.extend) {
    if (settings.focus !== "auto" && !(settings.width && settings.height)) set("focus", settings.focus);
    if (!sent.extend && sent.maskMode !== "hide") set("feather", settings.feather);
  } else if (sourceOf() && settings.detail !== "full") set("detail", settings.detail);
  set("adapters", settings.adapters);
  if (settings.width && settings.height) set("size", `${settings.width}x${settings.height}`);
  return form;
}

function typed() {
  const was = isEmpty(draft);
  draft.text = part.text.value;
  keepDraft();
  if (was !== isEmpty(draft)) drawComposer();
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
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (part.text.value.trim()) send(); }
}

function pasted(event) {
  const files = [...(event.clipboardData?.files || [])].filter((one) => one.type.startsWith("image/"));
  if (files.length) { event.preventDefault(); addFiles(files); }
}

// A picture as the server takes it: what it does not open is drawn and sent as PNG.
async function readFile(file) {
  let bitmap;
  try { bitmap = await createImageBitmap(file); } catch { throw new Error(`${file.name} is no picture that this browser opens: save it as PNG or JPEG.`); }
  const { width, height } = bitmap;
  if (READABLE.includes(file.type)) return { blob: file, name: file.name, width, height };
  const canvas = h("canvas", { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return { blob, name: file.name.replace(/\.\w+$/, "") + ".png", width, height };
}

async function addFiles(files) {
  for (const file of files) {
    if (draft.files.length >= model.max_images) { say("error", `At most ${model.max_images} pictures fit in one message.`); break; }
    try {
      const read = await readFile(file);
      if (!draft.files.length && !view.head) clearMask();
      draft.files.push({ ...read, url: URL.createObjectURL(read.blob) });
    } catch (error) { say("error", error.message); }
  }
  keepDraft();
  drawComposer();
  part.text.focus();
}

async function importSession() {
  const file = part.archive.files[0];
  root.querySelector("#menu").open = false;
  part.archive.value = "";
  if (!file) return;
  try {
    const added = Object.keys((await ask("POST", `${session}/archive`, file, { "Content-Type": "application/zip" })).nodes).length;
    await refreshed();
    say("info", `${added === 1 ? "1 picture" : added + " pictures"} added from ${file.name}`);
  } catch (error) { say("error", error.message); }
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
  const choice = (name, label, choices) => h("label", {}, label,
    h("select", { "data-setting": name, onchange: (event) => { settings[name] = event.target.value; memory.write("settings", settings); drawComposer(); } },
      Object.entries(choices).map(([value, text]) => h("option", { value, selected: settings[name] === value }, text))));
  part.panel.replaceChildren(h("div", { class: "settings" },
    field("negative", "Avoid (what the picture should not be)", { type: "text" }, true),
    field("steps", "Steps", { min: 1, max: 1000, placeholder: model.steps ?? "auto" }),
    field("guidance", "Guidance", { min: 0, max: 100, step: 0.1, placeholder: model.guidance ?? "auto" }),
    field("seed", "Seed (stays until you clear it)", { type: "text", inputmode: "numeric", pattern: "[0-9]*", placeholder: "random" }),
    field("count", "Variants at once", { min: 1, max: model.max_n }),
    field("history", "Earlier rounds that the model sees", { min: 0, max: 9, placeholder: model.max_history }),
    choice("detail", "Size and detail of an edit", { full: "Your picture's", model: "The model's own" }),
    choice("focus", "Small masks are worked on", { auto: "Close up", off: "As a whole" }),
    field("feather", "Blend inside the mask's edge, px", { min: 0, max: 100, placeholder: "none" }),
    field("width", "Width, px", { min: model.size_step_px || 1, step: model.size_step_px || 1, placeholder: "auto" }),
    field("height", "Height, px", { min: model.size_step_px || 1, step: model.size_step_px || 1, placeholder: "auto" }),
    lessons.some((one) => one.usable) && h("fieldset", { class: "wide adapters" }, h("legend", {}, "Adapters and their strengths"), lessons.filter((one) => one.usable).map(adapterField))));
  part.panel.hidden = false;
  part.panel.dataset.kind = "settings";
  root.querySelector("#settings").setAttribute("aria-expanded", "true");
  part.panel.querySelector("input").focus();
}

function adapterField(one) {
  const strength = h("input", { type: "number", min: -2, max: 2, step: 0.1, value: settings.adapters[one.name] || 1, "aria-label": `Strength of ${one.name}`, oninput: () => { if (box.checked) use(one.name, Number(strength.value)); } });
  const box = h("input", { type: "checkbox", checked: Boolean(settings.adapters[one.name]), "data-adapter": one.name, onchange: () => use(one.name, box.checked ? Number(strength.value) : 0) });
  return h("label", {}, box, h("span", {}, one.name), strength);
}

function use(name, strength) {
  if (strength) settings.adapters[name] = strength; else delete settings.adapters[name];
  memory.write("settings", settings);
  drawComposer();
}

// Teaching goes on in a process of its own; whoever looks asks how it stands.

function teach() {
  const pairs = view.nodes.filter((one) => beforeOf(one)).map((one) => ({ id: one.id, name: mention(one.id), before: beforeOf(one), after: answerOf(one.id), text: called(one) }));
  openTeach(root, { pairs, session: session.split("/").pop(), lessons: () => lessons, uses: (name) => Boolean(settings.adapters[name]), use, refresh: readLessons });
}

let readingLessons = null;
async function readLessons() {
  clearTimeout(readingLessons);
  const before = lessons;
  try { lessons = await listLessons(); } catch { return; }
  for (const one of lessons) {
    if (one.status === "running" || !before.some((other) => other.name === one.name && other.status === "running")) continue;
    if (one.status === "failed") say("error", `${one.name}: ${one.message}`);
    else say("info", `${one.name} is taught${one.verdict ? ": " + one.verdict : ""}.`, { label: "Use it", act: () => { use(one.name, 1); write(part.text.value || one.instruction); notice = null; drawNotice(); drawComposer(); } });
  }
  if (lessons.some((one) => one.status === "running")) readingLessons = setTimeout(readLessons, 1000);
  if (view) drawComposer();
}

function openMentions(typedSoFar, typing = false) {
  const choices = [
    ...draft.files.map((one, place) => ({ name: "@" + "abcdefghi"[place], src: one.url, text: one.name })),
    ...view.nodes.toReversed().map((one) => ({ name: mention(one.id), src: smallOf(one.id), text: called(one) })),
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
  write(part.text.value);
  drawComposer();
}

// Dialogs

function openGallery() {
  const families = new Map();
  for (const one of examples) families.set(one.task.split("/")[0], [...(families.get(one.task.split("/")[0]) || []), one]);
  openDialog(root, "Examples", [...families].map(([family, list]) => {
    const title = family.replaceAll("_", " ");
    return h("section", { class: "family" }, h("h3", {}, title[0].toUpperCase() + title.slice(1)), h("div", { class: "cards" }, list.map(card)));
  }));
}

async function takeExample(task) {
  root.querySelector("dialog")?.close();
  const one = examples.find((other) => other.task === task);
  const read = async (name) => new File([await (await fetch("/page/examples/" + name)).blob()], name, { type: "image/webp" });
  try {
    const files = await Promise.all(one.pictures.map(async (name) => readFile(await read(name))));
    const mask = one.mask && (await read(one.mask));
    draft = { ...emptyDraft(), files: files.map((file) => ({ ...file, url: URL.createObjectURL(file.blob) })), edit: files.length ? true : null, mask: mask && { blob: mask, url: URL.createObjectURL(mask) }, next: one.texts.slice(1) };
    write(one.texts[0]);
    if (view.head) go(null);
    drawComposer();
    part.text.focus();
  } catch { say("error", "The example cannot be read: try again."); }
}

function openPainter() {
  const source = sourceOf();
  if (!source) return;
  openEasel(root, source, { mask: draft.mask, mode: draft.maskMode, extend: draft.extend }, ({ mask, mode, extend }) => {
    draft.mask = mask && { ...mask, url: URL.createObjectURL(mask.blob) };
    draft.maskMode = mode;
    draft.extend = extend;
    keepDraft();
    drawComposer();
    part.text.focus();
  }, selects);
}

// The page as a whole

function switchTheme() {
  const dark = root.dataset.theme === "dark" || (root.dataset.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  root.dataset.theme = dark ? "light" : "dark";
  memory.write("theme", root.dataset.theme);
}

document.addEventListener("keydown", (event) => {
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

// The start

async function start() {
  const found = await ask("GET", "/v1/models");
  model = { name: found.data[0].id, ...found.data[0].ace };
  session = `/v1/sessions/${(await ask("GET", "/v1/sessions")).data[0].id}`;
  examples = await (await fetch("/page/examples/examples.json")).json();
  for (const [key, one] of await kept("pending:")) pending.set(key.slice("pending:".length), shownAgain(one));
  for (const [id, one] of pending) if (one.after) waiting.set(id, one.after);
  const before = (await kept("draft")).get("draft");
  if (before) { draft = shownAgain(before); part.text.value = draft.text; }
  part.teach.hidden = model.family !== "ace";
  if (model.family === "ace") await readLessons();
  ask("GET", "/select").then((found) => { selects = found.available; }).catch(() => {});
  await refresh();
  let first = true;
  follow(`${session}/events`, async (event) => { try { await heard(event); } finally { if (first) { first = false; settle(); } } }, setState);
}

start().catch((error) => { root.replaceChildren(h("p", { class: "broken" }, `The studio cannot start (${error.message}): reload the page.`)); });
