// Follows a run: lines as they come, and what else changes about it.
"use strict";

const log = document.getElementById("log");
const begun = document.getElementById("begun");
const status_ = document.getElementById("status");
const follow = document.getElementById("follow");
const trouble = document.getElementById("trouble");
const waiting = [];
let adding = false;

function toTheEnd() {
  log.scrollTop = log.scrollHeight;
}

// One event after the other, with room for the browser to paint in between.
function add() {
  const lines = waiting.shift();
  if (lines === undefined) {
    adding = false;
    return;
  }
  adding = true;
  const chunk = document.createElement("div");
  chunk.className = "chunk";
  // Made by the server, of escaped text only.
  chunk.innerHTML = lines;
  chunk.style.setProperty("contain-intrinsic-size", `auto ${chunk.childElementCount * 19}px`);
  log.append(chunk);
  if (follow.checked) toTheEnd();
  if (location.hash && chunk.querySelector(`[id="${CSS.escape(location.hash.slice(1))}"]`)) jump();
  requestAnimationFrame(() => setTimeout(add));
}

// A browser jumps to what is there when the page is loaded, not to what comes later.
function jump() {
  const there = document.getElementById(location.hash.slice(1));
  if (there) {
    follow.checked = false;
    there.classList.add("hit");
    there.scrollIntoView({ block: "center" });
  }
}

async function look(version) {
  if (version === status_.dataset.version) return;
  const answer = await fetch(status_.dataset.address, { headers: { Accept: "text/html" } });
  if (!answer.ok) return;
  // What somebody is typing is not taken away.
  if (status_.contains(document.activeElement) && document.activeElement.value) return;
  status_.innerHTML = await answer.text();
  status_.dataset.version = version;
}

function complain(text) {
  trouble.textContent = text;
  trouble.hidden = !text;
}

function listen() {
  const events = new EventSource(`${log.dataset.address}?after=${log.dataset.after}`);
  events.addEventListener("open", () => complain(""));
  events.addEventListener("lines", (event) => {
    waiting.push(event.data);
    log.dataset.after = event.lastEventId;
    begun.textContent = "";
    if (!adding) add();
  });
  events.addEventListener("begun", (event) => {
    begun.innerHTML = event.data;
  });
  events.addEventListener("status", (event) => look(event.data));
  events.addEventListener("refused", (event) => {
    events.close();
    complain(event.data);
  });
  events.addEventListener("over", (event) => {
    events.close();
    look(event.data);
    document.documentElement.dataset.over = "yes";
  });
  events.addEventListener("error", () => {
    complain("The connection is interrupted, and tried again.");
    // Anything but a stream ends it: a proxy whose server is away, or the end of the session.
    if (events.readyState === EventSource.CLOSED) setTimeout(comeBack, 2000);
  });
}

async function comeBack() {
  const answer = await fetch(status_.dataset.address).catch(() => undefined);
  if (answer === undefined || answer.status >= 500) setTimeout(comeBack, 2000);
  else if (answer.ok) listen();
  else complain("Reload the page to go on: you are not signed in any more.");
}

let hits = [];
let current = -1;

function search(text) {
  for (const hit of hits) hit.classList.remove("hit");
  const wanted = text.toLowerCase();
  hits = wanted ? [...log.querySelectorAll('[id^="L"]')].filter((row) => row.textContent.slice(row.firstChild.textContent.length).toLowerCase().includes(wanted)) : [];
  for (const hit of hits) hit.classList.add("hit");
  current = -1;
}

const form = document.getElementById("search");
const field = document.getElementById("wanted");
let searched = "";
form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (field.value !== searched || !hits.length) {
    searched = field.value;
    search(searched);
  }
  const found = document.getElementById("found");
  if (!hits.length) {
    found.textContent = searched ? "not found" : "";
    return;
  }
  current = (current + 1) % hits.length;
  follow.checked = false;
  hits[current].scrollIntoView({ block: "center" });
  found.textContent = `${current + 1} of ${hits.length}`;
});
follow.addEventListener("change", () => {
  if (follow.checked) toTheEnd();
});
log.addEventListener("wheel", () => {
  follow.checked = false;
}, { passive: true });
addEventListener("hashchange", jump);
form.hidden = false;
document.getElementById("following").hidden = false;
jump();
// The page is shown first; who has it in the background is not kept waiting for that.
let listening = false;
function begin() {
  if (!listening) listen();
  listening = true;
}
new PerformanceObserver(begin).observe({ type: "paint", buffered: true });
setTimeout(begin, 1000);
