// Offline: keeps the files of this build. The network is asked first, so that a new build is seen.
// Model and runtime are kept by store.js.

const BUILD = "BUILD_ID"; // build.mjs writes both
const FILES = ["FILE_LIST"];
const PAGE = `lesion-page-${self.registration.scope}`; // another copy on this origin has a scope of its own
const NAME = `${PAGE} ${BUILD}`;
const known = new Set(["./", ...FILES].map((file) => new URL(file, self.location.href).href));

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches
      .open(NAME)
      .then(async (cache) => {
        await cache.addAll(FILES);
        await cache.add("./").catch(() => {}); // a host may have no page for the folder itself
      })
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  const clean = async () => {
    const names = await caches.keys();
    await Promise.all(
      names.filter((name) => name.startsWith(`${PAGE} `) && name !== NAME).map((name) => caches.delete(name)),
    );
    await self.clients.claim();
  };
  event.waitUntil(clean());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  url.search = url.hash = "";
  if (request.method !== "GET" || !known.has(url.href)) return;
  const kept = async (response) => (await caches.match(url.href)) ?? response;
  event.respondWith(
    fetch(request).then(
      (response) => (response.ok ? response : kept(response)),
      () => kept(Response.error()),
    ),
  );
});
