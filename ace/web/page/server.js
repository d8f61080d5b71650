// The server's routes as the page uses them, and the browser's own store for what is not sent yet.

export class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

// An answer as JSON, or its error as `Refused`; status 0 = the server cannot be reached.
export async function ask(method, path, body = null, headers = {}) {
  const plain = body && !(body instanceof FormData) && !(body instanceof Blob);
  let response;
  try {
    response = await fetch(path, { method, body: plain ? JSON.stringify(body) : body, headers: { ...(plain ? { "Content-Type": "application/json" } : {}), ...headers } });
  } catch { throw new Refused("The server cannot be reached.", 0); }
  const said = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(said.error?.message || `the server answered ${response.status}: try again`, response.status);
  return said;
}

// Follow a session for as long as the page is open: `onEvent` is told how it stands, `onState` whether the server can be
// heard ("open", "away", or "locked" where it was started again with another key).
export async function follow(path, onEvent, onState) {
  for (;;) {
    try {
      const response = await fetch(path, { headers: { Accept: "text/event-stream" } });
      if (!response.ok) throw new Refused("", response.status);
      onState("open");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const parts = (text + value).split("\n\n");
        text = parts.pop();
        for (const part of parts) {
          const data = part.split("\n").find((line) => line.startsWith("data: "));
          if (data) onEvent(JSON.parse(data.slice(6)));
        }
      }
      onState("away");
    } catch (error) { onState(error.status === 401 ? "locked" : "away"); }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

// Drafts with their pictures live in the browser: IndexedDB holds files, and outlives the page and the server.
let opening = null;
const fallback = new Map();   // where there is no IndexedDB, for as long as the page is open

function store() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("ace-studio", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("kept");
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opening;
}

export async function keep(key, value) {
  try {
    const writing = (await store()).transaction("kept", "readwrite");
    if (value === null) writing.objectStore("kept").delete(key);
    else writing.objectStore("kept").put(value, key);
    writing.commit?.();   // so that a page that is left now has kept it
  } catch { fallback.set(key, value); }
}

export async function kept(prefix) {
  try {
    const objects = (await store()).transaction("kept").objectStore("kept");
    const range = IDBKeyRange.bound(prefix, prefix + "\uffff");
    const read = (request) => new Promise((resolve, reject) => { request.onsuccess = () => resolve(request.result); request.onerror = () => reject(request.error); });
    const [keys, values] = await Promise.all([read(objects.getAllKeys(range)), read(objects.getAll(range))]);
    return new Map(keys.map((key, place) => [key, values[place]]));
  } catch { return new Map([...fallback].filter(([key, value]) => key.startsWith(prefix) && value !== null)); }
}
