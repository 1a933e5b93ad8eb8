// The tab "API": how a program asks the same engine.

import { codeBlock, el } from "./dom.js";
import { MAX_PHOTOS_A_BATCH } from "./engine.js";

export function programsPanel(about, engine) {
  const parts = engine.kind === "server" ? serverParts(about) : browserParts(about);
  return el(
    "div",
    { class: "panel-content reading" },
    el("section", { class: "card" }, el("h2", {}, "Use it from a program"), parts),
  );
}

function serverParts({ model }) {
  const address = new URL("..", import.meta.url).href.replace(/\/$/, "");
  const mcp = { mcpServers: { "skin-lesion": { url: `${address}/gradio_api/mcp/` } } };
  return [
    el(
      "p",
      {},
      "Three endpoints reply in JSON: /classify (one photo), /explain (one photo, with the heat map of a diagnosis) " +
        `and /batch (up to ${MAX_PHOTOS_A_BATCH} photos). Send files; addresses are not fetched.`,
    ),
    el("h3", {}, "Python"),
    codeBlock(`from gradio_client import Client, handle_file

client = Client("${address}")
answer = client.predict(handle_file("lesion.jpg"), api_name="/classify")
print(answer["verdict"])

answer, overlay = client.predict(handle_file("lesion.jpg"), "${model.codes[0]}", api_name="/explain")
table = client.predict([handle_file("a.jpg"), handle_file("b.jpg")], api_name="/batch")`),
    el("h3", {}, "curl and jq"),
    codeBlock(`SENT=$(curl -s -F "files=@lesion.jpg" ${address}/gradio_api/upload | jq -r '.[0]')
EVENT=$(curl -s ${address}/gradio_api/call/classify -H 'Content-Type: application/json' \\
  -d '{"data": [{"path": "'"$SENT"'", "meta": {"_type": "gradio.FileData"}}]}' | jq -r .event_id)
curl -sN ${address}/gradio_api/call/classify/$EVENT | sed -n 's/^data: //p' | jq '.[0].verdict'`),
    el("h3", {}, "MCP, for assistants"),
    codeBlock(JSON.stringify(mcp, null, 2)),
    el(
      "p",
      { class: "small" },
      "The tools are classify, explain and batch. A photo is sent as data:image/jpeg;base64,… or as the path " +
        "that /gradio_api/upload returned for its file.",
    ),
  ];
}

function browserParts({ model }) {
  const address = new URL(".", import.meta.url).href;
  return [
    el(
      "p",
      {},
      "The engine is an ES module that runs the network in the browser; no photo is sent. " +
        "Another site needs a copy of the files beside this page, since browsers start workers of their own site only.",
    ),
    el("h3", {}, "JavaScript"),
    codeBlock(`import { open } from "${address}engine_browser.js";

const engine = await open("${model.url}");
const answer = await engine.answer(file); // a Blob, for example of <input type="file">
console.log(answer.verdict, answer.probabilities);`),
  ];
}
