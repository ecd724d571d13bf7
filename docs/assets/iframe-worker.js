/* A browser starts no worker from a file:// page, and Material's search is one. There a hidden frame takes the worker's
   place, so that search works from the disk, and no script is asked of another machine. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      this.iframe = document.createElement("iframe")
      this.iframe.hidden = true
      this.started = new Promise(resolve => {
        const start = () => {
          document.body.append(this.iframe)
          const inside = this.iframe.contentWindow, page = inside.document
          page.open()
          page.close()
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          const script = page.createElement("script")
          script.onload = resolve
          script.src = new URL(url, location.href)
          page.body.append(script)
        }
        document.body ? start() : addEventListener("DOMContentLoaded", start)
      })
    }
    postMessage(data) {
      this.started.then(() => this.iframe.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.iframe.remove()
    }
  }
  window.Worker = window.IFrameWorker
}
