// Put the static page together in dist/: page files, the runtime from node_modules, and the list that works offline.
//
//   npm run build        (package.json and page.json are beside this file)

import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const RUNTIME = join(process.argv[2] ?? "node_modules", "onnxruntime-web", "dist");
const PART = "dist.part"; // renamed when it is complete
const FROM_RUNTIME = ["ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"];
const OURS = /\.(html|js|css|svg|json)$/;
const NOT_OURS = /^(server\.(html|js)|engine_server\.js|package.*\.json)$/;

rmSync(PART, { recursive: true, force: true });
mkdirSync(PART);
for (const file of readdirSync(".").filter((name) => OURS.test(name) && !NOT_OURS.test(name)))
  cpSync(file, join(PART, file));
for (const file of FROM_RUNTIME) cpSync(join(RUNTIME, file), join(PART, file));

const engine = join(PART, "engine_browser.js");
const { dependencies } = JSON.parse(readFileSync("package.json", "utf8"));
writeFileSync(
  engine,
  readFileSync(engine, "utf8").replace("RUNTIME_VERSION", dependencies["onnxruntime-web"]),
);

const { model_hosts: hosts } = JSON.parse(readFileSync("page.json", "utf8"));
const index = readFileSync(join(PART, "index.html"), "utf8");
writeFileSync(
  join(PART, "index.html"),
  index.replaceAll(" MODEL_HOST", hosts.map((host) => ` ${host}`).join("")),
);

const files = readdirSync(PART)
  .filter((name) => name !== "sw.js" && !name.endsWith(".wasm"))
  .sort();
const hash = createHash("sha256");
for (const file of files) hash.update(file).update(readFileSync(join(PART, file)));
const build = hash.digest("hex").slice(0, 16);
const worker = readFileSync(join(PART, "sw.js"), "utf8").replace("BUILD_ID", build);
writeFileSync(join(PART, "sw.js"), worker.replace('["FILE_LIST"]', JSON.stringify(files)));
rmSync("dist", { recursive: true, force: true });
renameSync(PART, "dist");
console.log(`dist: ${files.length + 2} files, build ${build}`);
