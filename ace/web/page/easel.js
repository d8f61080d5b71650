// The easel: what may change is painted here, or a drawing for the model to follow, or a larger canvas.

import { button, h, openDialog } from "./dom.js";
import { Refused } from "./server.js";

const blobOf = (canvas) => new Blob([Uint8Array.from(atob(canvas.toDataURL("image/png").split(",")[1]), (one) => one.charCodeAt(0))], { type: "image/png" });

// A mask file (white = change) as strokes on a transparent ground.
function strokesOf(picture, width, height) {
  const made = h("canvas", { width, height }), pen = made.getContext("2d");
  pen.drawImage(picture, 0, 0, width, height);
  const all = pen.getImageData(0, 0, width, height);
  for (let k = 0; k < all.data.length; k += 4) all.data[k + 3] = Math.min(all.data[k], all.data[k + 3]);
  pen.putImageData(all, 0, 0);
  return made;
}

// source: { src, width, height }; old: { mask: { url }, mode, extend } as it was before; onUse: told the new one, with
// `mask` as { blob } or null. finds: whether the server can say what lies at a place.
export function openEasel(root, source, old, onUse, finds = false) {
  const scale = Math.max(1, Math.ceil(512 / Math.max(source.width, source.height)));
  const canvas = h("canvas", { width: source.width * scale, height: source.height * scale, tabindex: "0", "aria-label": "Picture to paint on: arrow keys move the brush, space paints" });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const ring = h("div", { class: "brush", hidden: true });
  const board = h("div", { class: "board", style: `--ratio: ${source.width / source.height}` }, h("div", { class: "sheet" }, h("img", { src: source.src, alt: "" }), canvas, ring));
  const sheet = board.firstChild;
  const sides = { left: 0, top: 0, right: 0, bottom: 0, ...old.extend };
  let tab = old.extend ? "extend" : "paint", tool = "brush", erasing = false, last = null, at = { x: 0.5, y: 0.5 }, mode = old.mode, colour = "#e4572e";
  let line = [], before = null, zoom = 1;
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
  const picture = () => pen.getImageData(0, 0, canvas.width, canvas.height);
  function mark() { history.push(picture()); if (history.length > 30) history.shift(); }
  function undo() { if (history.length) pen.putImageData(history.pop(), 0, 0); }
  function ready() {
    pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    pen.strokeStyle = pen.fillStyle = ink();
    pen.lineWidth = radius() * 2; pen.lineCap = pen.lineJoin = "round";
  }
  function paint(to) {
    ready();
    const from = last || to;
    pen.beginPath(); pen.moveTo(from.x * canvas.width, from.y * canvas.height); pen.lineTo(to.x * canvas.width + 0.01, to.y * canvas.height); pen.stroke();
    last = to;
  }
  // A rectangle or a lasso is drawn anew from what was there before it, for as long as it grows.
  function fill(to) {
    line.push(to);
    pen.globalCompositeOperation = "source-over";
    pen.putImageData(before, 0, 0);
    ready();
    pen.beginPath();
    if (tool === "square") pen.rect(line[0].x * canvas.width, line[0].y * canvas.height, (to.x - line[0].x) * canvas.width, (to.y - line[0].y) * canvas.height);
    else line.forEach((spot) => pen.lineTo(spot.x * canvas.width, spot.y * canvas.height));
    pen.fill();
  }
  // What lies at a place is asked of the server and added to what is painted, or taken from it.
  async function select(to) {
    said.textContent = "Looking …";
    try {
      const form = new FormData();
      form.append("image", await (await fetch(source.src)).blob(), "picture.png");
      form.append("x", String(to.x)); form.append("y", String(to.y));
      const answer = await fetch("/select", { method: "POST", body: form });
      if (!answer.ok) throw new Refused((await answer.json()).error?.message || "nothing found", answer.status);
      const found = strokesOf(await createImageBitmap(await answer.blob()), canvas.width, canvas.height);
      recolour(found.getContext("2d"), ink());
      mark();
      pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
      pen.drawImage(found, 0, 0);
      pen.globalCompositeOperation = "source-over";
      said.textContent = "Click another thing to add it, or Erase to take one away.";
    } catch (error) { said.textContent = error.message; }
  }
  const act = (to) => (tool === "brush" ? paint(to) : fill(to));
  function showRing() {
    ring.hidden = tab !== "paint" || tool !== "brush";
    ring.style.cssText = `left: ${at.x * 100}%; top: ${at.y * 100}%; width: ${(radius() * 200) / canvas.width}%; aspect-ratio: 1`;
  }
  const spot = (event) => { const box = canvas.getBoundingClientRect(); return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height }; };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    at = spot(event);
    if (event.button === 1) return;
    if (tool === "select") { select(at); return; }
    mark(); last = null; line = []; before = picture(); act(at); showRing();
  });
  canvas.addEventListener("pointermove", (event) => {
    at = spot(event);
    if (event.buttons & 4) { board.scrollLeft -= event.movementX; board.scrollTop -= event.movementY; }   // the wheel's button drags the sheet
    else if (event.buttons && tool !== "select") act(at);
    showRing();
  });
  canvas.addEventListener("pointerup", () => { last = null; line = []; });
  canvas.addEventListener("keydown", (event) => {
    const step = event.shiftKey ? 0.01 : 0.05;
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    if (move) { at = { x: Math.min(1, Math.max(0, at.x + move[0])), y: Math.min(1, Math.max(0, at.y + move[1])) }; showRing(); event.preventDefault(); }
    if (event.key === " ") { mark(); last = null; paint(at); last = null; event.preventDefault(); }
  });
  function setZoom(to) {
    const box = board.getBoundingClientRect(), was = zoom;
    zoom = Math.min(8, Math.max(1, to));
    const middle = { x: board.scrollLeft + box.width / 2, y: board.scrollTop + box.height / 2 };
    sheet.style.width = `${zoom * 100}%`;
    board.classList.toggle("near", zoom > 1);
    board.scrollTo((middle.x * zoom) / was - box.width / 2, (middle.y * zoom) / was - box.height / 2);
    showRing();
  }
  board.addEventListener("wheel", (event) => { if (event.ctrlKey || event.metaKey) { event.preventDefault(); setZoom(zoom * (event.deltaY < 0 ? 1.25 : 0.8)); } }, { passive: false });
  function invert() {
    mark();
    const all = picture();
    for (let k = 3; k < all.data.length; k += 4) all.data[k] = 255 - all.data[k];
    pen.putImageData(all, 0, 0);
    recolour(pen, ink());
  }
  const way = (value, label) => h("label", {}, h("input", { type: "radio", name: "mask-mode", value, checked: mode === value, onchange: () => { mode = value; canvas.classList.toggle("drawing", mode === "draw"); colours.hidden = mode !== "draw"; recolour(pen, ink()); } }), label);
  const colours = h("label", { hidden: mode !== "draw" }, "Colour", h("input", { type: "color", value: colour, oninput: (event) => { colour = event.target.value; } }));
  const rub = button("rub", "Erase", () => { erasing = !erasing; rub.setAttribute("aria-pressed", String(erasing)); }, { class: "edged", "aria-pressed": "false" });
  const kinds = [["brush", "Brush"], ["square", "Rectangle"], ["lasso", "Lasso"], ...(finds ? [["select", "Click a thing"]] : [])].map(([name, label]) =>
    button(name, label, () => { tool = name; kinds.forEach((one) => one.setAttribute("aria-pressed", String(one.dataset.tool === tool))); showRing(); }, { class: "edged", "data-tool": name, "aria-pressed": String(name === tool) }));
  const said = h("p", { class: "fine said", role: "status" });
  const paintOptions = h("div", { class: "options" },
    h("fieldset", {}, h("legend", { class: "fine" }, "What you paint"), way("mark", "is what may change"), way("hide", "may change, and is hidden from the model"), way("draw", "is a drawing for the model to follow")),
    h("div", { class: "row", role: "group", "aria-label": "Tool" }, kinds),
    colours, h("label", {}, "Brush", size),
    h("div", { class: "row" }, rub,
      button("undo", "Undo stroke", undo, { class: "edged", id: "undo-stroke" }),
      button("compare", "Swap inside and outside", invert, { class: "edged", id: "invert" }),
      button("again", "Clear", () => { mark(); pen.clearRect(0, 0, canvas.width, canvas.height); }, { class: "edged" }),
      button("plus", "Nearer", () => setZoom(zoom * 1.6), { class: "edged", id: "nearer" }),
      button("close", "Whole picture", () => setZoom(1), { class: "edged", id: "whole" })),
    said, h("p", { class: "fine" }, "Outside the mask not one pixel changes."));
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
      dialog.close();
      if (Object.values(sides).some(Boolean)) onUse({ mask: null, mode: "mark", extend: sides });
      return;
    }
    const small = h("canvas", { width: source.width, height: source.height }), last = small.getContext("2d");
    last.drawImage(canvas, 0, 0, source.width, source.height);
    const painted = last.getImageData(0, 0, source.width, source.height).data.some((value, place) => place % 4 === 3 && value > 127);
    if (mode !== "draw") {   // white where it may change, on black
      recolour(last, "#ffffff");
      last.globalCompositeOperation = "destination-over"; last.fillStyle = "#000000"; last.fillRect(0, 0, source.width, source.height);
    }
    const blob = painted ? blobOf(small) : null;
    dialog.close();
    onUse({ mask: blob && { blob }, mode, extend: null });
  }
  show(tab);
  if (old.mask) {
    const picture = new Image();
    picture.onload = () => { pen.drawImage(old.mode === "draw" ? picture : strokesOf(picture, source.width, source.height), 0, 0, canvas.width, canvas.height); if (mode !== "draw") recolour(pen, ink()); };
    picture.src = old.mask.url;
  }
  const dialog = openDialog(root, "Paint a mask", [tabs, easel],
    [h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { type: "button", class: "main", id: "use-mask", onclick: finish }, "Use it")]);
  dialog.addEventListener("keydown", (event) => { if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") { event.preventDefault(); undo(); } });
  canvas.classList.toggle("drawing", mode === "draw");
}
