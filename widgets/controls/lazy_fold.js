// @ts-check
// The title line of a fold, which manners.js opens and closes; this one sends the kernel a message when it is first pressed.

export default {
  render({ model, el }) {
    const title = element("span"), subtitle = element("small");
    const button = element("button", { type: "button", class: "wb-fold-title", "aria-expanded": "false" }, title, subtitle);
    el.append(button);
    const fill = () => {
      title.textContent = model.get("title");
      subtitle.textContent = model.get("subtitle");
      button.title = model.get("subtitle");
    };
    button.addEventListener("click", () => {
      if (model.get("opened")) return;
      model.set("opened", true);
      model.save_changes();
    });
    model.on("change:title change:subtitle", fill);
    fill();
    return () => model.off("change:title change:subtitle", fill);
  },
};
