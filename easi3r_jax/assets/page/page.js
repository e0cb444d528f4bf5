// Says at once, and without a press, what the server's state means for this page.
(() => {
  const PERIOD = 3000;
  let start = null;
  let failures = 0;

  const notice = () => {
    let element = document.getElementById("server-notice");
    if (!element && document.body) {
      element = document.createElement("div");
      element.id = "server-notice";
      element.setAttribute("role", "status");
      document.body.prepend(element);
    }
    return element;
  };
  const say = (text) => {
    const element = notice();
    if (element && element.textContent !== text) element.textContent = text;
  };

  // The address that the server believes it has, against the one in the browser's address bar.
  const root = () => new URL(window.gradio_config?.root || "/", window.location.href);
  const wrong = () => {
    const path = root().pathname.replace(/\/$/, "");
    const here = window.location.pathname.replace(/\/[^/]*$/, "");
    if (here !== path && window.location.pathname !== path) {
      return `This page is shown below ${here || "/"}, which its server does not know. Start it with ` +
        `--root_path=${window.location.origin}${here}.`;
    }
    if (root().hostname !== window.location.hostname) {
      return `This page is shown as ${window.location.host}, and its server believes that it is ${root().host}. ` +
        `Start it with --root_path=${window.location.origin}${here}, or let the proxy pass the Host header on.`;
    }
    return "";
  };

  const ask = async () => {
    const complaint = wrong();
    if (complaint) { say(complaint); return; }
    try {
      const path = root().pathname.replace(/\/$/, "");
      const answer = await fetch(`${window.location.origin}${path}/status`, {
        cache: "no-store", signal: AbortSignal.timeout(2 * PERIOD),
      });
      if (!answer.ok) throw new Error(String(answer.status));
      const state = await answer.json();
      failures = 0;
      start = start || state.start;
      if (state.start !== start) {
        say("The server has been restarted: files and results of this page are gone. Reload the page.");
      } else if (state.waiting >= state.most) {
        say(`The queue is full: ${state.waiting} jobs wait. Try again later.`);
      } else if (state.waiting > 0) {
        const running = state.running ? "One job is running" : "A job is about to begin";
        say(`${running}, ${state.waiting} wait${state.waiting === 1 ? "s" : ""}.`);
      } else {
        say("");
      }
    } catch {
      failures += 1;
      if (failures > 1) {
        say("The server does not answer: it has ended, or the connection is interrupted. This page keeps trying.");
      }
    }
  };
  const begin = () => {
    // Gradio names a manifest at the root of the site, also below a path, where it does not exist.
    document.querySelector('link[rel="manifest"]')?.remove();
    const again = () => ask().finally(() => window.setTimeout(again, PERIOD));
    again();
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();  // gradio has inserted this script when it was ready itself
})();
