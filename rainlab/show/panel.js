// The panel's picture side: draws what the kernel sends, acknowledges each frame once it is drawn, and sends back what
// hands do. Messages to the kernel: ready, gone, visible, drawn, drag, keys, pick, upload, camera. From it: frame
// (pictures as JPEG), reference, gallery, camera (the picture is used up: send the next). Everything else is in
// synchronised traits.

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", KeyA: "a", KeyD: "d", Space: "space" };
const CAMERA = { width: 320, height: 240, quality: 0.8, giveUp: 5000 }; // pixels, JPEG quality, ms

function make(tag, className, parent, attributes = {}) {
  const element = document.createElementNS(tag === "svg" || tag === "circle" ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  if (className) element.setAttribute("class", className);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  parent?.append(element);
  return element;
}

function bitmap(view) {
  return createImageBitmap(new Blob([view], { type: "image/jpeg" }));
}

// A picture that keeps its last bitmap, so that it can be drawn again when size or filter change.
class Picture {
  constructor(parent, label) {
    this.figure = make("figure", "rl-picture", parent);
    this.caption = make("figcaption", "", this.figure);
    this.caption.textContent = label;
    this.frame = make("div", "rl-frame", this.figure);
    this.canvas = make("canvas", "", this.frame, { role: "img", "aria-label": label });
  }

  draw(picture, smooth) {
    if (picture) this.last = picture;
    if (!this.last) return;
    const scale = Math.max(1, window.devicePixelRatio || 1);
    const width = Math.round(this.canvas.clientWidth * scale) || this.last.width;
    const height = Math.round((width * this.last.height) / this.last.width);
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    const context = this.canvas.getContext("2d");
    context.imageSmoothingEnabled = smooth;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.last, 0, 0, width, height);
  }
}

function render({ model, el }) {
  const root = make("div", "rl-panel", el);
  const views = make("div", "rl-views", root);
  const live = new Picture(views, "live");
  const side = make("div", "rl-side", views);
  const pair = make("div", "rl-pair", side);
  const driver = new Picture(pair, "driver");
  const reference = new Picture(pair, "reference");
  const gallery = make("div", "rl-gallery", side, { role: "group", "aria-label": "reference pictures" });
  const numbers = make("div", "rl-numbers", side);
  const message = make("p", "rl-message", root, { role: "status", "aria-live": "polite" });
  const cells = {};
  let closed = false;
  const send = (content, buffers) => {
    try {
      closed || model.send(content, undefined, buffers);
    } catch {
      closed = true; // the kernel is gone: there is nobody to tell
    }
  };
  const smooth = () => model.get("smooth");
  const redraw = () => [live, driver, reference].forEach((picture) => picture.draw(null, smooth()));

  // -- what the kernel says ------------------------------------------------------------------------------------------

  function showNumbers() {
    for (const [name, text] of Object.entries(model.get("numbers"))) {
      if (!cells[name]) {
        make("span", "rl-name", numbers).textContent = name;
        cells[name] = make("span", "rl-value", numbers);
      }
      cells[name].textContent = text;
    }
  }

  function showMessage() {
    message.textContent = model.get("message");
    message.classList.toggle("rl-trouble", model.get("trouble"));
  }

  function setRatio() {
    root.style.setProperty("--rl-ratio", `${model.get("columns")} / ${model.get("rows")}`);
  }

  async function onFrame(content, buffers) {
    const pictures = await Promise.all(buffers.map(bitmap));
    requestAnimationFrame(() => {
      if (closed) return;
      live.draw(pictures[0], smooth());
      if (pictures[1]) driver.draw(pictures[1], smooth());
      if (content.joints) placeHandles(content.joints);
      send({ drawn: content.number });
    });
  }

  async function onGallery(buffers) {
    gallery.replaceChildren();
    for (const [index, view] of buffers.entries()) {
      const button = make("button", "", gallery, { type: "button", title: `character ${index + 1}` });
      button.setAttribute("aria-label", `character ${index + 1} as reference`);
      const picture = await bitmap(view);
      const canvas = make("canvas", "", button, { width: picture.width, height: picture.height });
      canvas.getContext("2d").drawImage(picture, 0, 0);
      button.addEventListener("click", () => send({ pick: index }));
    }
    make("span", "rl-break", gallery);
    const random = make("button", "rl-words", gallery, { type: "button" });
    random.textContent = "new character";
    random.addEventListener("click", () => send({ pick: -1 }));
    const label = make("label", "rl-words", gallery, { tabindex: 0 });
    label.textContent = "your picture …";
    const file = make("input", "", label, { type: "file", accept: "image/*", tabindex: -1 });
    file.addEventListener("change", () => file.files[0] && upload(file.files[0]));
    label.addEventListener("keydown", (event) => (event.key === "Enter" || event.key === " ") && file.click());
  }

  function onMessage(content, buffers) {
    if (content.type === "frame") onFrame(content, buffers);
    else if (content.type === "reference") bitmap(buffers[0]).then((picture) => reference.draw(picture, smooth()));
    else if (content.type === "gallery") onGallery(buffers);
    else if (content.type === "camera") camera.used();
  }

  // -- what hands do -------------------------------------------------------------------------------------------------

  async function upload(file) {
    send({ upload: file.name }, [await file.arrayBuffer()]);
  }
  const over = (event) => {
    event.preventDefault();
    event.stopPropagation();
    root.classList.toggle("rl-over", event.type === "dragover");
  };
  root.addEventListener("dragover", over);
  root.addEventListener("dragleave", over);
  root.addEventListener("drop", (event) => {
    over(event);
    if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]);
  });

  // The skeleton's joints as handles over the driver's picture, in pixels of the stream.
  const handles = make("svg", "rl-handles", driver.frame);
  const circles = [];
  let dragged = null;
  function toStream(event) {
    const box = handles.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * model.get("columns") - 0.5, ((event.clientY - box.top) / box.height) * model.get("rows") - 0.5];
  }
  function placeHandles(joints) {
    handles.setAttribute("viewBox", `-0.5 -0.5 ${model.get("columns")} ${model.get("rows")}`);
    joints.forEach(([name, x, y], index) => {
      if (!circles[index]) {
        const circle = (circles[index] = make("circle", "", handles, { r: model.get("rows") / 42, tabindex: 0, role: "slider" }));
        circle.setAttribute("aria-label", `${name}: drag it, or use the arrow keys`);
        make("title", "", circle).textContent = name;
        circle.addEventListener("pointerdown", (event) => {
          dragged = index;
          circle.setPointerCapture(event.pointerId);
          event.preventDefault();
          circle.focus();
        });
        circle.addEventListener("pointermove", (event) => dragged === index && send({ drag: index, at: toStream(event) }));
        for (const end of ["pointerup", "pointercancel"]) circle.addEventListener(end, () => (dragged = null));
        circle.addEventListener("keydown", (event) => {
          const step = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] }[event.key];
          if (!step) return;
          event.preventDefault();
          event.stopPropagation();
          send({ drag: index, at: [circle.cx.baseVal.value + step[0], circle.cy.baseVal.value + step[1]] });
        });
      }
      circles[index].setAttribute("cx", x);
      circles[index].setAttribute("cy", y);
      circles[index].setAttribute("aria-valuetext", `${Math.round(x)}, ${Math.round(y)}`);
    });
  }

  // Keys that are down while the driver's picture has the focus.
  const down = new Set();
  const pad = make("p", "rl-hint", driver.figure);
  function key(event) {
    const name = KEYS[event.code];
    if (model.get("source") !== "keyboard" || !name) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.type === "keydown" ? down.has(name) : !down.has(name)) return;
    event.type === "keydown" ? down.add(name) : down.delete(name);
    send({ keys: [...down] });
  }
  function release() {
    if (down.size) {
      down.clear();
      send({ keys: [] });
    }
  }
  driver.figure.addEventListener("keydown", key);
  driver.figure.addEventListener("keyup", key);
  driver.figure.addEventListener("focusout", release);
  driver.figure.addEventListener("pointerdown", () => model.get("source") === "keyboard" && driver.figure.focus());

  // The browser's camera: one picture on its way at a time. If the kernel does not answer, it is switched off.
  const camera = {
    async on() {
      if (this.stream || this.starting) return;
      this.starting = true;
      try {
        const stream = await navigator.mediaDevices.getUserMedia({ video: { width: CAMERA.width, height: CAMERA.height } });
        if (closed || model.get("source") !== "camera") return stream.getTracks().forEach((track) => track.stop());
        this.stream = stream;
        this.video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
        await this.video.play();
        this.canvas = Object.assign(document.createElement("canvas"), { width: CAMERA.width, height: CAMERA.height });
        this.take();
      } catch (error) {
        send({ camera: String(error.message || error) });
      } finally {
        this.starting = false;
      }
    },
    take() {
      if (!this.stream) return;
      this.canvas.getContext("2d").drawImage(this.video, 0, 0, CAMERA.width, CAMERA.height);
      this.canvas.toBlob(
        async (blob) => {
          if (!this.stream || !blob) return;
          send({ camera: "" }, [await blob.arrayBuffer()]);
          this.timer = setTimeout(() => this.off(), CAMERA.giveUp);
        },
        "image/jpeg",
        CAMERA.quality,
      );
    },
    used() {
      clearTimeout(this.timer);
      requestAnimationFrame(() => this.take());
    },
    off() {
      clearTimeout(this.timer);
      this.stream?.getTracks().forEach((track) => track.stop());
      this.stream = this.video = null;
    },
  };

  function showSource() {
    const source = model.get("source");
    handles.style.display = source === "skeleton" ? "" : "none";
    pad.textContent = { skeleton: "drag the joints", keyboard: "click here, then ← → ↑, A, D, space" }[source] || "\u00a0";
    driver.figure.tabIndex = source === "keyboard" ? 0 : -1;
    release();
    source === "camera" && model.get("filming") ? camera.on() : camera.off();
  }

  // -- life ----------------------------------------------------------------------------------------------------------

  const leaving = () => {
    send({ gone: true });
    closed = true;
  };
  const visibility = () => send({ visible: document.visibilityState === "visible" });
  const resized = new ResizeObserver(redraw);
  const watched = { numbers: showNumbers, message: showMessage, trouble: showMessage, smooth: redraw, source: showSource, filming: showSource };
  for (const [name, act] of Object.entries(watched)) model.on(`change:${name}`, act);
  model.on("msg:custom", onMessage);
  document.addEventListener("visibilitychange", visibility);
  window.addEventListener("pagehide", leaving);
  resized.observe(live.canvas);
  setRatio();
  showNumbers();
  showMessage();
  showSource();
  send({ ready: true });

  return () => {
    release();
    camera.off();
    leaving();
    for (const [name, act] of Object.entries(watched)) model.off(`change:${name}`, act);
    model.off("msg:custom", onMessage);
    document.removeEventListener("visibilitychange", visibility);
    window.removeEventListener("pagehide", leaving);
    resized.disconnect();
  };
}

export default { render };
