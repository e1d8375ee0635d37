// Keeps the page for visits without a network, and sends the two headers with it that several threads need
// (cross-origin isolation), which a server of plain files does not send.
// The page's own small files come from the network while there is one. What is asked for with ?v= never changes.

const SCOPE = new URL(registration.scope);
const SHELL = `ldm ${SCOPE.pathname} page`;
const KEPT = `ldm ${SCOPE.pathname} model `; // and the version
const FILES = [
  "./", "chips.js", "engine.js", "link.js", "main.js", "model.js", "noise.js", "offline.js", "outline.js", "png.js",
  "sampler.js", "style.css", "tokenizer.js", "view.js", "worker.js", "settings.json",
];
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin",
};
const NOTHING = { match: async () => undefined, put: async () => {} }; // in place of a cache on a full disk

oninstall = () => skipWaiting();
onactivate = (event) => event.waitUntil(clients.claim());
// asked for by the page once it has drawn: until then its model needs the network more
onmessage = (event) => event.waitUntil(keepShell(event.data).catch(() => {}));

onfetch = (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== SCOPE.origin || !url.pathname.startsWith(SCOPE.pathname)) return;
  const version = event.request.mode === "navigate" ? null : url.searchParams.get("v");
  event.respondWith((version ? keptFirst(event, KEPT + version) : networkFirst(event, url)).then(isolated));
};

async function keepShell(modules) {
  const cache = await caches.open(SHELL);
  for (const path of [...FILES, ...modules])
    if (!(await cache.match(path))) await cache.add(new Request(path, { cache: "no-cache" }));
}

async function networkFirst(event, url) {
  const cache = await caches.open(SHELL).catch(() => NOTHING);
  try {
    const answer = await fetch(url, { cache: "no-cache" });
    if (answer.ok) event.waitUntil(cache.put(url, answer.clone()).catch(() => {}));
    return answer;
  } catch (error) {
    const kept = await cache.match(url, { ignoreSearch: true });
    const start = event.request.mode === "navigate" ? await cache.match("./") : null;
    return kept ?? start ?? Promise.reject(error);
  }
}

async function keptFirst(event, name) {
  const cache = await caches.open(name).catch(() => NOTHING);
  const kept = await cache.match(event.request);
  if (kept) return kept;
  const answer = await fetch(event.request);
  if (answer.ok) event.waitUntil(cache.put(event.request, answer.clone()).then(() => forget(name), () => {}));
  return answer;
}

/** Earlier versions of this page's model go. */
async function forget(name) {
  for (const other of await caches.keys()) if (other.startsWith(KEPT) && other !== name) await caches.delete(other);
}

function isolated(answer) {
  const headers = new Headers(answer.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}
