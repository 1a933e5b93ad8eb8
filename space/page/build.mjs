// Put the static page together in dist/: page files, the runtime from node_modules, and the list that works offline.
//
//   npm run build        (package.json and page.json are beside this file)

import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const RUNTIME = "node_modules/onnxruntime-web/dist";
const FROM_RUNTIME = ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
const OURS = /\.(html|js|css|svg|json)$/;
const NOT_OURS = /^(server\.(html|js)|engine_server\.js|package.*\.json)$/;

rmSync("dist", { recursive: true, force: true });
mkdirSync("dist");
for (const file of readdirSync(".").filter((name) => OURS.test(name) && !NOT_OURS.test(name)))
  cpSync(file, join("dist", file));
for (const file of FROM_RUNTIME) cpSync(join(RUNTIME, file), join("dist", file));

const { model_hosts: hosts } = JSON.parse(readFileSync("page.json", "utf8"));
const index = readFileSync("dist/index.html", "utf8");
writeFileSync("dist/index.html", index.replaceAll(" MODEL_HOST", hosts.map((host) => ` ${host}`).join("")));

const files = readdirSync("dist")
  .filter((name) => name !== "sw.js" && !name.endsWith(".wasm"))
  .sort();
const hash = createHash("sha256");
for (const file of files) hash.update(file).update(readFileSync(join("dist", file)));
const build = hash.digest("hex").slice(0, 16);
const worker = readFileSync("dist/sw.js", "utf8").replace("BUILD_ID", build);
writeFileSync("dist/sw.js", worker.replace('["FILE_LIST"]', JSON.stringify(["./", ...files])));
console.log(`dist: ${files.length + 2} files, build ${build}`);
