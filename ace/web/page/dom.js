// Elements without markup: every text that comes from people goes into the page as text.

const ICONS = {
  plus: "M12 5v14M5 12h14", close: "M6 6l12 12M18 6L6 18", send: "M12 19V5M6 11l6-6 6 6", stop: "M7 7h10v10H7z",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9.5h.01", brush: "M14 5l5 5-8 8H6v-5zM12 7l5 5", at: "M16 12a4 4 0 1 1-8 0 4 4 0 0 1 8 0zm0 0v1.5a2.5 2.5 0 0 0 5 0V12a9 9 0 1 0-3.6 7.2",
  tune: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5v5M8 14.5v5", undo: "M8 5L4 9l4 4M4 9h10a6 6 0 0 1 0 12h-3", redo: "M16 5l4 4-4 4M20 9H10a6 6 0 0 0 0 12h3",
  rub: "M9 19h11M5 14l8-8 6 6-7 7H9z", again: "M20 11a8 8 0 1 0-2 6M20 5v6h-6", many: "M4 4h10v10H4zM10 17v3h10V10h-3", compare: "M12 3v18M4 6h5v12H4zM15 6h5v12h-5z",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14", more: "M6 12h.01M12 12h.01M18 12h.01", grid: "M4 4h7v7H4zM13 4h7v7h-7zM4 13h7v7H4zM13 13h7v7h-7z",
  theme: "M12 3a9 9 0 1 0 0 18zM12 3v18", branch: "M7 4v16M7 14c6 0 10-2 10-7M14.5 6.5L17 4l2.5 2.5", check: "M5 12l5 5L20 7", pen: "M5 19l1-4L17 4l3 3L9 18z",
  teach: "M12 4L2 9l10 5 10-5zM6 11.5V16c3 3 9 3 12 0v-4.5", select: "M5 5l5 14 2.5-6L19 10.5z", square: "M5 7h14v10H5z", lasso: "M12 5c5 0 8 2 8 5s-3 5-8 5-8-2-8-5 3-5 8-5zM8 14.5c0 2-1 3-2 4.5",
};

export function h(tag, attributes, ...children) {
  const made = tag === "svg" || tag === "path" ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") made.style.cssText = value;   // by script: the page allows no style attributes
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export const icon = (name) => h("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, h("path", { d: ICONS[name] }));

export const button = (name, label, onclick, more = {}) =>
  h("button", { type: "button", title: label, "aria-label": label, onclick, ...more }, icon(name), h("span", { class: "label" }, label));

// A dialog over the page; it is gone when it is closed.
export function openDialog(root, title, body, end) {
  const dialog = h("dialog", { "aria-label": title, onclose: () => dialog.remove(), onclick: (event) => { if (event.target === dialog) dialog.close(); } },
    h("div", { class: "top" }, h("h2", {}, title), button("close", "Close", () => dialog.close())), h("div", { class: "body" }, body), end ? h("div", { class: "end" }, end) : null);
  root.append(dialog);
  dialog.showModal();
  return dialog;
}

// A question with one line as its answer.
export function askText(root, title, before, onAnswer) {
  const field = h("input", { type: "text", class: "line", value: before, maxlength: "200", "aria-label": title });
  const done = () => { dialog.close(); onAnswer(field.value.trim()); };
  field.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); done(); } });
  const dialog = openDialog(root, title, field, [h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { type: "button", class: "main", onclick: done }, "Use it")]);
  field.select();
}

// A question before what cannot be undone.
export function confirmed(root, question, word, onYes) {
  const dialog = openDialog(root, question, "", [h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), h("button", { type: "button", class: "main", id: "yes", onclick: () => { dialog.close(); onYes(); } }, word)]);
}
