// A page that is opened as a file may not start workers. So that the search works there, too, this
// runs its worker in a hidden frame of the page. Material looks for the name `IFrameWorker`.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.receive = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      frame.srcdoc =
        "<script>postMessage = (data) => frameElement.receive(data)</script>" +
        `<script src="${encodeURI(decodeURI(url))}"></script>`;
      this.frame = new Promise((ready) => frame.addEventListener("load", () => ready(frame)));
      document.body.append(frame);
    }
    async postMessage(data) {
      const inside = (await this.frame).contentWindow;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }
  };
}
