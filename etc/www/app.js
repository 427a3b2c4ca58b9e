// The demonstration page: opens WebSocket sessions and shows which backend answers each.
//
// A demonstration backend answers the text "hi" with its port in front: "2222: hi". That is all this page knows
// about backends; other configurations may have other ports, or more of them.
//
// For tests and scripts, these names stay:
//   #text #path                        the message, and the path that new sessions open
//   #open #burst #send #close #clear   open one, open six, send to all, close all, take ended ones away
//   #passthrough                       open wss://passthrough.localhost:PORT/
//   #status                            one sentence on what is open (a live region)
//   .group[data-path]                  the board of "/wsapp", "/wschat" or "passthrough"
//   .lane[data-backend]                one backend of a board, e.g. data-backend="2222"
//   .session[data-session][data-path][data-state][data-backend][data-sent][data-received][data-code]
//                                      one session: its number; "connecting", "open", "closing", "closed" or "failed";
//                                      its backend once known ("other" if the answer names none); text frames each
//                                      way; the close code at the end. Inside: .send-one .close-one .reconnect
//   #tally .row[data-backend][data-total][data-open]
//   #log li[data-kind]                 "sent", "received", "event" or "fault"; newest first
"use strict";

(() => {
  const BURST = 6;
  const MOST_OPEN = 60;
  const LOG_LINES = 120;
  const TALLY_COLUMNS = 30;
  const HUES = 6;
  const SLOW_AFTER = 1500; // ms
  const FIRST_HUE = { "/wsapp": 0, "/wschat": 2, passthrough: 4 };
  const REASONS = {
    1000: "normal end",
    1001: "the other side is going away",
    1002: "protocol error",
    1003: "kind of data not accepted",
    1005: "no code given",
    1006: "connection lost, no Close frame",
    1007: "not valid text",
    1008: "against the policy",
    1009: "message too big",
    1011: "the backend failed",
    1012: "restarting",
    1013: "try again later",
    1014: "bad gateway",
  };

  const $ = (selector, from = document) => from.querySelector(selector);
  const text = $("#text");
  const path = $("#path");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const port = location.port || (location.protocol === "https:" ? "443" : "80");
  const sessions = [];
  const placed = new Map(); // session number -> [path, backend]: outlives a card that was taken away
  let lastNumber = 0;
  let drawing = false;
  let announcing = 0;

  const isLive = (session) => session.state === "open";
  const isEnded = (session) => session.state === "closed" || session.state === "failed";
  const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

  function make(tag, className, content = "") {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = content;
    return element;
  }

  function groupOf(key) {
    return document.querySelector(`.group[data-path="${CSS.escape(key)}"]`);
  }

  function urlOf(key) {
    if (key === "passthrough") return `wss://passthrough.localhost:${port}/`;
    return `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${key}`;
  }

  // --- one session -------------------------------------------------------------------------------

  function open(key) {
    if (sessions.filter((session) => !isEnded(session)).length >= MOST_OPEN) {
      $("#status").textContent = `${MOST_OPEN} sessions are open: that is enough for one page.`;
      return;
    }
    const session = {
      number: ++lastNumber, key, backend: null, state: "connecting", sent: 0, received: 0, code: null,
      greeting: text.value, last: "", socket: null, element: makeCard(),
    };
    sessions.push(session);
    bindCard(session);
    $(".rail", groupOf(key)).append(session.element);
    connect(session);
    change(session);
    // On the rail a session is a number only; one that stays there needs its buttons.
    setTimeout(() => { session.element.dataset.slow = "yes"; }, SLOW_AFTER);
  }

  function connect(session) {
    try {
      session.socket = new WebSocket(urlOf(session.key));
    } catch (fault) {
      end(session, "failed", null, fault.message);
      return;
    }
    session.socket.binaryType = "arraybuffer";
    session.socket.addEventListener("open", () => {
      session.state = "open";
      log("event", session, "open");
      send(session, session.greeting);
    });
    session.socket.addEventListener("message", (event) => receive(session, event.data));
    session.socket.addEventListener("close", (event) => {
      const state = session.state === "connecting" ? "failed" : "closed";
      end(session, state, event.code, event.reason);
    });
  }

  function send(session, message) {
    if (!isLive(session)) return;
    session.socket.send(message);
    session.sent += 1;
    log("sent", session, message);
    change(session);
  }

  function receive(session, data) {
    session.received += 1;
    const shown = typeof data === "string" ? data : `binary, ${plural(data.byteLength, "byte")}`;
    const named = typeof data === "string" ? /^(\d{1,5}): /.exec(data) : null;
    const backend = named ? named[1] : "other";
    session.last = named ? data.slice(named[0].length) : shown;
    const first = session.backend === null;
    if (first) {
      session.backend = backend;
      settle(session);
    }
    log("received", session, shown);
    if (!first && named && session.backend !== backend) {
      log("fault", session, `answered by ${backend}, but it began on ${session.backend}`);
    }
    change(session);
  }

  function end(session, state, code, reason) {
    session.state = state;
    session.code = code;
    const why = reason || REASONS[code];
    if (state === "failed") {
      session.last = code === null ? `could not be opened: ${reason}` : `could not be opened (${code})`;
    } else {
      session.last = why ? `closed: ${code}, ${why}` : `closed: ${code}`;
    }
    log(state === "failed" ? "fault" : "event", session, session.last);
    change(session);
  }

  function close(session) {
    if (isEnded(session)) return;
    session.state = "closing";
    session.socket.close(1000, "closed by the page");
    change(session);
  }

  function remove(session) {
    sessions.splice(sessions.indexOf(session), 1);
    session.element.remove();
    draw();
  }

  // --- cards and lanes ---------------------------------------------------------------------------

  function makeCard() {
    return $("#session-template").content.firstElementChild.cloneNode(true);
  }

  function bindCard(session) {
    const card = session.element;
    const name = `session ${session.number}`;
    card.tabIndex = -1;
    $(".number", card).textContent = `#${session.number}`;
    $(".route", card).textContent = session.key === "passthrough" ? "tunnel" : session.key;
    for (const [selector, word, action] of [
      [".send-one", "Send to", () => send(session, text.value)],
      [".close-one", "Close", () => close(session)],
      [".reconnect", "Reconnect", () => reconnect(session)],
    ]) {
      const button = $(selector, card);
      button.setAttribute("aria-label", `${word} ${name}`);
      button.addEventListener("click", action);
    }
  }

  // A reconnect is a new session: it gets a new number, and the router chooses anew.
  function reconnect(session) {
    const { key } = session;
    remove(session);
    open(key);
    const next = sessions.at(-1);
    if (next) next.element.focus({ preventScroll: true }); // its buttons cannot be used yet
  }

  function change(session) {
    const card = session.element;
    Object.assign(card.dataset, {
      session: session.number, path: session.key, state: session.state, sent: session.sent, received: session.received,
    });
    if (session.backend !== null) card.dataset.backend = session.backend;
    if (session.code !== null) card.dataset.code = session.code;
    const ended = isEnded(session);
    const hadFocus = card.contains(document.activeElement);
    $(".state", card).textContent = session.state === "failed" ? "failed" : session.state;
    $(".last", card).textContent = session.last || "…";
    $(".last", card).title = session.last;
    $(".count", card).textContent = `${session.sent} sent, ${session.received} back`;
    $(".send-one", card).hidden = ended;
    $(".close-one", card).hidden = ended;
    $(".reconnect", card).hidden = !ended;
    $(".send-one", card).disabled = session.state !== "open";
    $(".close-one", card).disabled = session.state === "closing";
    if (ended && hadFocus) $(".reconnect", card).focus({ preventScroll: true });
    draw();
  }

  function laneOf(session) {
    const lanes = $(".lanes", groupOf(session.key));
    const known = [...lanes.querySelectorAll(".lane")];
    const same = known.find((lane) => lane.dataset.backend === session.backend);
    if (same) return same;
    const lane = make("section", "lane");
    lane.dataset.backend = session.backend;
    lane.dataset.place = placeOf(session);
    const title = make("h3", "backend", session.backend === "other" ? "another backend" : session.backend);
    const head = make("header", "");
    head.append(title, make("p", "live"));
    lane.append(head, make("ul", "track"));
    // In the order of ports, whichever answered first.
    const next = known.find((each) => Number(each.dataset.backend) > Number(session.backend));
    lanes.insertBefore(lane, next || null);
    paint(session.key, lanes);
    return lane;
  }

  function placeOf(session) {
    return `${session.key} ${session.backend}`;
  }

  // A backend's colour follows from its place among the known ones, so that it is the same on every visit.
  function paint(key, lanes) {
    [...lanes.querySelectorAll(".lane")].forEach((lane, index) => {
      const hue = (FIRST_HUE[key] + index) % HUES;
      for (const each of document.querySelectorAll(`[data-place="${CSS.escape(lane.dataset.place)}"]`)) {
        each.dataset.hue = hue;
      }
    });
  }

  // From the router's rail into the lane of the backend that answered.
  function settle(session) {
    const card = session.element;
    const from = card.getBoundingClientRect();
    const focused = document.activeElement;
    const lane = laneOf(session);
    $(".track", lane).append(card);
    if (card.contains(focused)) focused.focus({ preventScroll: true });
    if (still.matches) return;
    const to = card.getBoundingClientRect();
    card.animate(
      [
        { transform: `translate(${from.left - to.left}px, ${from.top - to.top}px)`, opacity: 0.3 },
        { transform: "none", opacity: 1 },
      ],
      { duration: 420, easing: "cubic-bezier(.2, .8, .2, 1)" },
    );
  }

  // --- what is counted ---------------------------------------------------------------------------

  // Everything that is derived from the sessions is drawn at most once a frame.
  function draw() {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      drawCounts();
      drawTally();
      clearTimeout(announcing);
      announcing = setTimeout(announce, 250);
    });
  }

  function drawCounts() {
    const live = sessions.filter(isLive).length;
    $("#send").disabled = live === 0;
    $("#close").disabled = sessions.every(isEnded);
    $("#clear").disabled = !sessions.some(isEnded);
    for (const lane of document.querySelectorAll(".lane")) {
      const open = lane.querySelectorAll('.session[data-state="open"]').length;
      $(".live", lane).textContent = `${open} open`;
    }
  }

  function drawTally() {
    const states = new Map(sessions.map((session) => [session.number, session]));
    for (const session of sessions) {
      if (session.backend !== null) placed.set(session.number, [session.key, session.backend]);
    }
    const rows = [...document.querySelectorAll(".lane")].map((lane) => {
      const key = lane.closest(".group").dataset.path;
      const mine = [...placed].filter(([, place]) => place[0] === key && place[1] === lane.dataset.backend);
      const numbers = mine.map(([number]) => number);
      const open = numbers.filter((number) => states.has(number) && isLive(states.get(number))).length;
      return tallyRow(lane, numbers, open, states);
    });
    if (rows.length) $("#tally").replaceChildren(...rows);
  }

  function tallyRow(lane, numbers, open, states) {
    const row = make("div", "row");
    Object.assign(row.dataset, {
      backend: lane.dataset.backend, hue: lane.dataset.hue, total: numbers.length, open,
    });
    const cells = make("span", "cells");
    cells.setAttribute("aria-hidden", "true");
    const first = lastNumber - TALLY_COLUMNS + 1;
    const own = new Set(numbers);
    for (let number = first; number <= lastNumber; number += 1) {
      const cell = make("i", own.has(number) ? "cell" : "gap");
      const session = states.get(number);
      if (own.has(number)) cell.classList.add(session && !isEnded(session) ? "open" : "ended");
      cells.append(cell);
    }
    const total = make("span", "total");
    total.append(make("b", "", String(numbers.length)), make("span", "quiet", ` ${open} open`));
    row.append(make("span", "name", lane.dataset.backend), cells, total);
    return row;
  }

  function announce() {
    const live = sessions.filter(isLive);
    const counts = new Map();
    for (const { backend } of live) {
      if (backend !== null) counts.set(backend, (counts.get(backend) || 0) + 1);
    }
    const failed = sessions.filter((session) => session.state === "failed").length;
    const places = [...counts].sort((a, b) => Number(a[0]) - Number(b[0])).map(([name, count]) => `${count} on ${name}`);
    const open = live.length ? `${plural(live.length, "session")} open` : "No session is open";
    const parts = [places.length ? `${open}: ${places.join(", ")}` : open];
    if (failed) parts.push(`${failed} could not be opened`);
    const sentence = `${parts.join("; ")}.`;
    if ($("#status").textContent !== sentence) $("#status").textContent = sentence;
  }

  function log(kind, session, message) {
    const list = $("#log");
    const empty = $(".empty", list);
    if (empty) empty.remove();
    const line = make("li", "");
    line.dataset.kind = kind;
    if (session && session.backend !== null) {
      line.dataset.place = placeOf(session);
      line.dataset.hue = laneOf(session).dataset.hue;
    }
    const sign = { sent: "→", received: "←", event: "·", fault: "!" }[kind];
    line.append(
      make("time", "", new Date().toTimeString().slice(0, 8)),
      make("span", "who", session ? `#${session.number}` : ""),
      make("span", "sign", sign),
      make("span", "what", message),
    );
    list.prepend(line);
    while (list.children.length > LOG_LINES) list.lastElementChild.remove();
  }

  // --- the page ----------------------------------------------------------------------------------

  function sendAll() {
    sessions.filter(isLive).forEach((session) => send(session, text.value));
  }

  function showPort(element) {
    const fit = (value) => value.replace(/(localhost):8080\b/, `$1:${port}`);
    element.textContent = fit(element.textContent);
    if (element.href) element.href = fit(element.getAttribute("href"));
  }

  async function copy(button) {
    const code = $("code", button.parentElement);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  $("#controls").addEventListener("submit", (event) => {
    event.preventDefault();
    if (sessions.some(isLive)) sendAll();
    else open(path.value);
  });
  // While #send is disabled, Enter does not submit the form by itself.
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing && $("#send").disabled) {
      event.preventDefault();
      open(path.value);
    }
  });
  $("#open").addEventListener("click", () => open(path.value));
  $("#burst").addEventListener("click", () => {
    for (let count = 0; count < BURST; count += 1) open(path.value);
  });
  $("#close").addEventListener("click", () => {
    sessions.forEach(close);
    $("#burst").focus(); // the button that was pressed is about to be disabled
  });
  $("#clear").addEventListener("click", () => {
    sessions.filter(isEnded).forEach(remove);
    $("#burst").focus();
  });
  $("#passthrough").addEventListener("click", () => open("passthrough"));
  document.querySelectorAll("[data-port]").forEach(showPort);
  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => copy(button)));
})();
