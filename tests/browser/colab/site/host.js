// @ts-check
// The notebook's own page: speaks to a kernel as Jupyter's server does, remembers every model's state, and gives each cell a
// frame of another origin for its outputs.
//
// In the query: kernel and token; theme; clipboard=0 for frames that may not write there; opened=0 for frames that are not
// told of models made after they were there.

/** @typedef {{channel: string, header: {msg_type: string}, parent_header: {msg_id: string}, content: any, metadata: any}} Message */

const asked = new URLSearchParams(location.search);
const VIEW = "application/vnd.jupyter.widget-view+json";
const HEIGHT = 1000; // pixels of a frame that has not asked for more
const SANDBOX = "allow-downloads allow-forms allow-modals allow-popups allow-same-origin allow-scripts";

const cells = new Map(); // an execution's message id -> its cell
const models = new Map(); // a comm's id -> the state its model was last sent
/** @type {Set<{post: (message: any) => void}>} */
const frames = new Set();
document.documentElement.setAttribute("theme", asked.get("theme") ?? "light");

// ---------------------------------------------------------------- the kernel

const socket = new WebSocket(
  `ws://${location.host}/api/kernels/${asked.get("kernel")}/channels?session_id=page&token=${asked.get("token")}`,
);
socket.binaryType = "arraybuffer";

/** Jupyter's frames: how many parts, where each begins, then the message as JSON and its buffers. */
function packed(message, buffers) {
  const text = new TextEncoder().encode(JSON.stringify(message));
  const parts = [text, ...buffers.map((buffer) => new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength))];
  const head = 4 * (1 + parts.length);
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, head)), view = new DataView(whole.buffer);
  view.setUint32(0, parts.length);
  parts.reduce((at, part, i) => {
    view.setUint32(4 * (1 + i), at);
    whole.set(part, at);
    return at + part.length;
  }, head);
  return whole;
}

/** @returns {{message: Message, buffers: ArrayBuffer[]}} */
function unpacked(data) {
  if (typeof data === "string") return { message: JSON.parse(data), buffers: [] };
  const view = new DataView(data), count = view.getUint32(0);
  const begins = Array.from({ length: count }, (_, i) => view.getUint32(4 * (1 + i)));
  const [text, ...buffers] = begins.map((begin, i) => data.slice(begin, begins[i + 1]));
  return { message: JSON.parse(new TextDecoder().decode(text)), buffers };
}

function send(type, content, buffers = []) {
  const id = crypto.randomUUID(), date = new Date().toISOString();
  const header = { msg_id: id, msg_type: type, session: "page", username: "", version: "5.3", date };
  socket.send(packed({ channel: "shell", header, parent_header: {}, metadata: {}, content }, buffers));
  return id;
}

/** Each buffer to its place in a state that came without them. */
function withBuffers({ state = {}, buffer_paths: paths = [] }, buffers) {
  paths.forEach((path, i) => {
    const holder = path.slice(0, -1).reduce((node, key) => node[key], state);
    holder[path.at(-1)] = buffers[i];
  });
  return state;
}

/** @type {Record<string, (message: Message, buffers: ArrayBuffer[]) => void>} */
const heard = {
  status({ content, parent_header: { msg_id } }) {
    if (content.execution_state === "idle") cells.get(msg_id)?.end();
  },
  stream({ content, parent_header: { msg_id } }) { cells.get(msg_id)?.print(content.text); },
  error({ content, parent_header: { msg_id } }) { cells.get(msg_id)?.end(content.traceback.join("\n")); },
  display_data(message) { show(message); },
  execute_result(message) { show(message); },
  comm_open({ content: { comm_id: id, data } }, buffers) {
    models.set(id, withBuffers(structuredClone(data), buffers));
    if (asked.get("opened") !== "0") frames.forEach((frame) => frame.post({ kind: "opened", id, data }));
  },
  comm_msg({ content: { comm_id: id, data } }, buffers) {
    if (data.method === "update") Object.assign(models.get(id) ?? {}, withBuffers(structuredClone(data), buffers));
    frames.forEach((frame) => frame.post({ kind: "message", id, data, buffers }));
  },
  comm_close({ content: { comm_id: id } }) {
    models.delete(id);
    frames.forEach((frame) => frame.post({ kind: "closed", id }));
  },
};

socket.addEventListener("message", ({ data }) => {
  const { message, buffers } = unpacked(data);
  if (message.channel === "iopub") heard[message.header.msg_type]?.(message, buffers);
});

// ---------------------------------------------------------------- outputs

function show({ content, parent_header: { msg_id } }) {
  const cell = cells.get(msg_id), view = content.data[VIEW];
  if (!cell) throw new Error("An output for no cell.");
  if (!view) return void cell.frame().post({ kind: "html", html: plain(content.data) });
  const url = content.metadata[VIEW]?.colab?.custom_widget_manager.url;
  if (!url) throw new Error("A widget that names no manager: Colab's own shows no anywidget.");
  cell.frame().post({ kind: "render", id: view.model_id, url });
}

function plain(data) {
  const png = data["image/png"];
  if (png) return `<img alt="" src="data:image/png;base64,${png}">`;
  if (data["text/html"]) return data["text/html"];
  const text = document.createElement("pre");
  text.textContent = data["text/plain"] ?? "";
  return text.outerHTML;
}

function openFrame(place) {
  const element = document.createElement("iframe"), { port1: port, port2 } = new MessageChannel();
  let limit = HEIGHT, wanted = 0;
  const fit = () => (element.style.height = `${Math.min(wanted, limit)}px`);
  const says = {
    state({ id, reply }) {
      const state = models.get(id);
      const found = state && {
        modelName: state._model_name, modelModule: state._model_module, modelModuleVersion: state._model_module_version, state,
      };
      port.postMessage({ kind: "reply", reply, value: found });
    },
    send({ id, data, buffers, reply }) {
      send("comm_msg", { comm_id: id, data }, buffers);
      port.postMessage({ kind: "reply", reply });
    },
    open({ id, target, data, buffers }) { send("comm_open", { comm_id: id, target_name: target, data }, buffers); },
    height({ height }) { wanted = height; fit(); },
    limit({ height }) { limit = height; fit(); },
  };
  port.addEventListener("message", ({ data }) => says[data.kind](data));
  port.start();
  element.setAttribute("sandbox", SANDBOX);
  if (asked.get("clipboard") !== "0") element.allow = "clipboard-write";
  element.addEventListener("load", () => element.contentWindow?.postMessage("port", "*", [port2]));
  element.src = `https://frames.test/frame.html?theme=${asked.get("theme") ?? "light"}`;
  place.append(element);
  const frame = { post: (message) => port.postMessage(message) };
  frames.add(frame);
  return frame;
}

// ---------------------------------------------------------------- what a reader does

/** Has the kernel run code; what it printed, or a rejection with a traceback. `frame` gives a place for its outputs. */
function execute(code, frame) {
  const request = { code, silent: false, store_history: true, user_expressions: {}, allow_stdin: false, stop_on_error: true };
  let printed = "";
  return new Promise((resolve, reject) => {
    cells.set(send("execute_request", request), {
      frame,
      print: (text) => void (printed += text),
      end: (trouble) => (trouble ? reject(new Error(trouble)) : resolve(printed.trim())),
    });
  });
}

/** Runs a cell below the others. */
function runCell(code) {
  const place = document.createElement("section"), source = document.createElement("pre");
  source.textContent = code;
  place.append(source);
  document.querySelector("main")?.append(place);
  let frame;
  return { done: execute(code, () => (frame ??= openFrame(place))) };
}

const nowhere = () => {
  throw new Error("An output of what is no cell.");
};

const ask = (code) => execute(code, nowhere);

/** Asks the kernel over and over until what it prints is what is wanted; rejects after so many seconds. */
async function until(code, wanted, seconds) {
  const end = performance.now() + 1000 * seconds;
  for (let found; (found = await ask(code)) !== wanted; ) {
    if (performance.now() > end) throw new Error(`${code} gave ${found}, not ${wanted}`);
    await new Promise((go) => setTimeout(go, 100));
  }
}

const ready = new Promise((resolve) => socket.addEventListener("open", resolve));
Object.assign(globalThis, { colabPage: { runCell, ask, until, ready } });
export {}; // a module: it has a scope of its own
