// @ts-check
// A cell's outputs: loads the widget manager that an output names and gives it what Colab gives one, a kernel behind a port to
// the notebook's page.

const theme = new URLSearchParams(location.search).get("theme") ?? "light";
document.documentElement.setAttribute("theme", theme);
const area = /** @type {HTMLElement} */ (document.querySelector("#output-area"));
const comms = new Map(), managers = new Map(), waiting = new Map();
let replies = 0;

/** @type {(port: MessagePort) => void} */
let connected = () => {};
/** @type {Promise<MessagePort>} */
const connection = new Promise((resolve) => (connected = resolve));

/** What the kernel sends to one model. Whoever listens gets all of it, from when the model was first asked for. */
class Comm {
  constructor(id) {
    this.id = id;
    /** @type {any[]} */
    this.past = [];
    /** @type {(() => void)[]} */
    this.waking = [];
    this.ended = false;
  }

  hear(message) {
    this.past.push(message);
    this.wake();
  }

  close() {
    this.ended = true;
    this.wake();
  }

  wake() {
    for (const go of this.waking.splice(0)) go();
  }

  send(data, { buffers = [] } = {}) {
    return ask({ kind: "send", id: this.id, data, buffers });
  }

  get messages() {
    return { [Symbol.asyncIterator]: () => this.listened() };
  }

  async *listened() {
    for (let at = 0; ; at += 1) {
      while (at === this.past.length && !this.ended) await new Promise((go) => this.waking.push(() => go(undefined)));
      if (at === this.past.length) return;
      yield this.past[at];
    }
  }
}

function commOf(id) {
  if (!comms.has(id)) comms.set(id, new Comm(id));
  return comms.get(id);
}

async function post(message) {
  (await connection).postMessage(message);
}

function ask(message) {
  return new Promise((resolve) => {
    waiting.set((replies += 1), resolve);
    void post({ ...message, reply: replies });
  });
}

// ---------------------------------------------------------------- what a manager is given

async function openCommChannel(target, data, buffers = []) {
  const comm = commOf(crypto.randomUUID());
  await post({ kind: "open", id: comm.id, target, data, buffers });
  return comm;
}

const environment = {
  openCommChannel,
  async getModelState(id) {
    const comm = commOf(id); // before its state is asked for: nothing that is sent between is lost
    const found = await ask({ kind: "state", id });
    return found && { ...found, comm };
  },
  async renderOutput(output, place) {
    place.innerHTML = output.data?.["text/html"] ?? "";
  },
};

function managerAt(url) {
  if (!managers.has(url)) managers.set(url, import(url).then((module) => module.createWidgetManager(environment)));
  return managers.get(url);
}

/** @type {Record<string, (message: any) => unknown>} */
const heard = {
  html({ html }) { area.insertAdjacentHTML("beforeend", html); },
  async render({ id, url }) {
    const place = document.createElement("div");
    area.append(place);
    await (await managerAt(url)).render(id, place);
  },
  async opened({ id, data }) {
    for (const manager of managers.values()) await (await manager).commChannelOpened?.(id, commOf(id), data);
  },
  message({ id, data, buffers }) { comms.get(id)?.hear({ data, buffers }); },
  closed({ id }) { comms.get(id)?.close(); },
  reply({ reply, value }) {
    waiting.get(reply)?.(value);
    waiting.delete(reply);
  },
};

function setIframeHeight(_height, _grows, { maxHeight = 0 } = {}) {
  if (maxHeight) void post({ kind: "limit", height: maxHeight });
}

Object.assign(globalThis, { google: { colab: { output: { setIframeHeight }, kernel: { accessAllowed: true } } } });

globalThis.addEventListener("message", ({ data, ports: [port] }) => {
  if (data !== "port") return;
  port.onmessage = ({ data: message }) => void heard[message.kind](message);
  connected(port);
  const tell = () => void post({ kind: "height", height: Math.ceil(document.body.getBoundingClientRect().height) });
  new ResizeObserver(tell).observe(document.body);
});

export {}; // a module: it has a scope of its own
