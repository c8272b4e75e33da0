// Browsers start no workers for pages that are opened from a folder. There, the search runs in a hidden frame, which
// speaks as a worker does. The theme looks for the name IFrameWorker; on a web server nothing here is used.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc =
        '<script>postMessage = data => parent.postMessage(data, "*")</script>' +
        `<script src="${String(address).replaceAll('"', "%22")}"></script>`
      this.frame = frame
      this.loaded = new Promise(resolve => frame.addEventListener("load", resolve))
      window.addEventListener("message", event => {
        if (event.source === frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", {data: event.data}))
      })
      document.body.append(frame)
    }

    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", {data})))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
