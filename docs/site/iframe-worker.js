// The search runs in a worker, and browsers refuse one to a page from the disk. There it runs in a hidden frame.
// (Material's offline plug-in would load a script of this name from another host.)
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = frame.contentWindow, script = inner.document.createElement("script");
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.post = (data) => inner.dispatchEvent(new inner.MessageEvent("message", { data }));
      this.loaded = new Promise((done) => script.addEventListener("load", done));
      script.src = url;
      inner.document.body.append(script);
    }
    postMessage(data) {
      this.loaded.then(() => this.post(data));
    }
  };
