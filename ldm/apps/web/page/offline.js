// Starts sw.js, so that the page works without a network and, loaded once more, with several threads.

const TRIED = "ldm: loaded again";
const PATIENCE = 3000; // milliseconds for sw.js to start

/** Whether the page is about to be loaded again, through sw.js: nothing else is worth starting then. */
export async function prepare(threads) {
  if (!("serviceWorker" in navigator) || crossOriginIsolated || threads < 2) return false;
  try {
    if (sessionStorage.getItem(TRIED)) return false;
    const registration = await navigator.serviceWorker.register("sw.js");
    if (!navigator.serviceWorker.controller && (registration.active || !(await taken()))) return false;
    sessionStorage.setItem(TRIED, "yes");
    location.reload();
    return true;
  } catch {
    return false; // a private window, a full disk: the page works without it
  }
}

function taken() {
  return new Promise((resolve) => {
    navigator.serviceWorker.addEventListener("controllerchange", () => resolve(true), { once: true });
    setTimeout(() => resolve(false), PATIENCE);
  });
}

/** Starts sw.js, if it does not run yet, and asks it to keep the page's own files and the modules of the engines. */
export async function keep(modules) {
  if (!("serviceWorker" in navigator)) return;
  try {
    await navigator.serviceWorker.register("sw.js");
    (await navigator.serviceWorker.ready).active.postMessage(modules);
  } catch {
    // as above
  }
}
