// What changes by itself: parts of the page are fetched as HTML and put in place. Without script the page works as well.
"use strict";
(() => {
  const page = document.body.dataset.page;
  const seq = document.body.dataset.seq;
  const shown = new Map();
  const wait = { good: 1000, bad: 2000 };
  let timer = 0;
  if (page === "login" || !seq) return;

  const show = (id, is) => { document.getElementById(id).hidden = !is; };

  // a link in a part that is replaced keeps the focus
  const replace = (id, html) => {
    const part = document.getElementById(id);
    if (!part || shown.get(id) === html) return;
    shown.set(id, html);
    const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    part.innerHTML = html;
    if (focused === null) return;
    const again = [...part.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused);
    if (again) again.focus({ preventScroll: true });
  };

  const look = async () => {
    clearTimeout(timer);
    let next = wait.good;
    try {
      const answer = await fetch(`/live?page=${page}`, { signal: AbortSignal.timeout(10000) });
      if (answer.status === 401) { location.reload(); return; }
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const told = await answer.json();
      for (const [id, html] of Object.entries(told.parts)) replace(id, html);
      show("connection", false);
      show("stale", page !== "now" && told.seq !== seq);
    } catch (error) {
      show("connection", true);
      next = wait.bad;
    }
    if (!document.hidden) timer = setTimeout(look, next);
  };

  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  timer = setTimeout(look, wait.good);
})();
