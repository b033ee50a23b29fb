// @ts-check
// Stands in for Colab's widget manager: the same versions of Jupyter's packages, out of a bundle that npm has. As the original
// it keeps models that it asked for apart from those that a comm_open made, gives a comm_open's buffers to nobody, fetches
// others' modules from jsDelivr, and brings no style sheet of Lumino's.

const CDN = "https://cdn.jsdelivr.net/npm";
const BUNDLE = "@jupyter-widgets/html-manager@0.21.0-alpha.3/dist/libembed-amd.js";
const CONTROLS = "@jupyter-widgets/controls@4.0.0-alpha.3/css";
const SHEETS = ["materialcolors", "labvariables", "lumino", "nouislider", "nouislider-custom", "widgets-base"];
const TIED = `:root {
  --jp-widgets-color: var(--colab-primary-text-color); --jp-ui-font-color1: var(--colab-primary-text-color);
  --jp-layout-color2: var(--colab-secondary-surface-color);
  --jp-widgets-input-background-color: var(--colab-secondary-surface-color);
}
colab-stand-in { display: block; }`;

// ---------------------------------------------------------------- AMD modules

/** @type {Map<string, {needs: string[], make: any, value?: Promise<any>}>} */
const modules = new Map();
const fetched = new Map(); // address -> when it has been evaluated; once, whoever asks

function required(name) {
  const found = modules.get(name);
  if (!found) throw new Error(`There is no module ${name}.`);
  const given = (need) => (need === "module" ? { id: name } : need === "exports" ? {} : required(need));
  found.value ??= Promise.all(found.needs.map(given)).then((values) => found.make?.(...values));
  return found.value;
}

async function evaluate(path, name) {
  const answer = await fetch(`${CDN}/${path}`);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  const define = (...given) => {
    const make = given.pop(), needs = Array.isArray(given.at(-1)) ? given.pop() : [];
    modules.set(given[0] ?? name, { needs, make: typeof make === "function" ? make : () => make });
  };
  define.amd = {};
  const node = { env: {}, argv: [], cwd: () => "/" }; // the bundle takes its place for Node's
  new Function("define", "process", await answer.text())(define, node);
}

function load(path, name) {
  if (!fetched.has(path)) fetched.set(path, evaluate(path, name));
  return fetched.get(path);
}

// ---------------------------------------------------------------- the manager

/** A comm as Jupyter's managers know it, over one of Colab's. */
class ManagersComm {
  constructor(id, channel) {
    this.comm_id = id;
    this.target_name = "jupyter.widget";
    this.channel = channel;
  }

  send(data, callbacks, _metadata, buffers = []) {
    const bytes = buffers.map((part) => (ArrayBuffer.isView(part) ? new Uint8Array(part.buffer, part.byteOffset, part.byteLength) : part));
    const idle = { content: { execution_state: "idle" } };
    void this.channel.send(JSON.parse(JSON.stringify(data)), { buffers: bytes }).then(() => callbacks?.iopub?.status?.(idle));
    return "";
  }

  close() {
    this.channel.close();
    return "";
  }

  async on_msg(told) {
    for await (const { data, buffers = [] } of this.channel.messages) {
      told({ content: { comm_id: this.comm_id, data }, buffers: buffers.map((part) => new Uint8Array(part)) });
    }
  }

  async on_close(told) {
    for await (const _ of this.channel.messages); // to the end
    told();
  }
}

customElements.define("colab-stand-in", class extends HTMLElement {
  /** @type {(type: string) => void} */
  told = () => {};
  connectedCallback() { this.told("after-attach"); }
  disconnectedCallback() { this.told("before-detach"); this.told("after-detach"); }
});

async function jupyters() {
  const before = new Set(document.querySelectorAll("style, link"));
  await load(BUNDLE, "bundle");
  const [base, html] = await Promise.all(["base", "html-manager", "controls"].map((name) => required(`@jupyter-widgets/${name}`)));
  for (const look of document.querySelectorAll("style, link")) if (!before.has(look)) look.remove(); // it has Lumino's, too
  const sheets = await Promise.all(SHEETS.map(async (name) => (await fetch(`${CDN}/${CONTROLS}/${name}.css`)).text()));
  const style = document.createElement("style");
  style.textContent = sheets.join("\n").replace(/@import[^;]*;/g, "") + TIED;
  document.head.append(style);
  return { base, Base: Object.getPrototypeOf(html.HTMLManager) };
}

function managerClass({ base, Base }, environment) {
  return class extends Base {
    asked = new Map(); // model id -> the model that was made of the state that the page holds

    async loadClass(name, module, version) {
      if (!modules.has(module)) await load(`${module}@${version}/dist/index.js`, module);
      return (await required(module))[name];
    }

    async _create_comm(target, id, data, _metadata, buffers) {
      return new ManagersComm(id ?? "", await environment.openCommChannel(target, data, buffers));
    }

    get_model(id) {
      if (!this.asked.has(id)) this.asked.set(id, this.askedFor(id));
      return this.asked.get(id);
    }

    async askedFor(id) {
      const found = await environment.getModelState(id);
      if (!found) throw new Error(`There is no model ${id}.`);
      const { state, buffer_paths: paths, buffers } = base.remove_buffers(found.state);
      base.put_buffers(state, paths, buffers);
      const { modelName: model_name, modelModule: model_module, modelModuleVersion: model_module_version } = found;
      const comm = new ManagersComm(id, found.comm);
      return this.new_model({ model_name, model_module, model_module_version, model_id: id, comm }, state);
    }

    async opened(id, channel, data) {
      if (!data || this.asked.has(id)) return;
      const content = { comm_id: id, target_name: "jupyter.widget", data };
      const metadata = { version: base.PROTOCOL_VERSION };
      await this.handle_comm_open(new ManagersComm(id, channel), { header: {}, parent_header: {}, channel: "iopub", metadata, content });
    }
  };
}

export function createWidgetManager(environment) {
  const ready = jupyters().then((found) => new (managerClass(found, environment))());
  return {
    async render(id, place) {
      const manager = await ready, view = await manager.create_view(await manager.get_model(id));
      const tell = (type) => view.luminoWidget.processMessage({ type, isConflatable: false, conflate: () => false });
      const holder = /** @type {HTMLElement & {told: (type: string) => void}} */ (document.createElement("colab-stand-in"));
      holder.told = tell;
      tell("before-attach");
      holder.append(view.el);
      place.append(holder);
    },
    async commChannelOpened(id, channel, data) {
      await (await ready).opened(id, channel, data);
    },
  };
}
