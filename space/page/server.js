// Entry of the page that a Gradio server answers for: server.html beside this file.

import { serverEngine } from "./engine_server.js";
import { mount } from "./page.js";

mount(
  document.getElementById("lesion-page"),
  serverEngine(new URL("..", import.meta.url).href.replace(/\/$/, "")),
);
