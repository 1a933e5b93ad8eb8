// Offline: keeps the files of this build. The network is asked first, so that a new build is seen.
// Model and runtime are kept by store.js.

const BUILD = "BUILD_ID"; // build.mjs writes both
const FILES = ["FILE_LIST"];
const NAME = `lesion-page-${BUILD}`;
const known = new Set(FILES.map((file) => new URL(file, self.location.href).href));

self.addEventListener("install", (event) => {
  event.waitUntil(
    caches
      .open(NAME)
      .then((cache) => cache.addAll(FILES))
      .then(() => self.skipWaiting()),
  );
});

self.addEventListener("activate", (event) => {
  const clean = async () => {
    const names = await caches.keys();
    await Promise.all(
      names
        .filter((name) => name.startsWith("lesion-page-") && name !== NAME)
        .map((name) => caches.delete(name)),
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
  event.respondWith(fetch(request).catch(async () => (await caches.match(url.href)) ?? Response.error()));
});
