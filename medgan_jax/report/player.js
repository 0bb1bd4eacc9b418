"use strict";
(() => {
  const data = JSON.parse(document.getElementById("player-data").textContent);
  const frames = data.frames;
  const find = (id) => document.getElementById(id);
  const player = find("player");
  const STATE = "medgan_jax player";

  if (frames.length) startPlayer();
  if (data.live) watch();

  function startPlayer() {
    const scrub = find("scrub"), speed = find("speed"), loop = find("loop"), screen = find("screen");
    const images = new Map(); // by frame, so that none is decoded twice while it is near
    let at = frames.length - 1, wanted = 0, timer = null;

    const isPlaying = () => timer !== null;

    function picture(i) {
      let image = images.get(i);
      if (!image) {
        image = new Image();
        image.className = data.tiny ? "tiny" : "";
        image.src = frames[i][1];
        images.set(i, image);
        if (images.size > 48) images.delete(images.keys().next().value);
      }
      return image;
    }

    function show(i) {
      at = Math.max(0, Math.min(frames.length - 1, i));
      const step = frames[at][0], image = picture(at), ticket = ++wanted;
      image.alt = `Generated images at step ${step}`;
      // Swapped once it is decoded: nothing flickers, and of a quick succession only the last one is shown.
      const swap = () => { if (ticket === wanted) screen.replaceChildren(image); };
      image.decode().then(swap, swap);
      find("step").textContent = step;
      scrub.value = at;
      scrub.setAttribute("aria-valuetext", `step ${step}, picture ${at + 1} of ${frames.length}`);
      if (at + 1 < frames.length) picture(at + 1);
    }

    function play(on) {
      clearTimeout(timer);
      timer = null;
      if (on && frames.length > 1) {
        if (at === frames.length - 1) show(0);
        wait();
      }
      find("play-label").textContent = isPlaying() ? "Pause" : "Play";
      find("play-icon").setAttribute("d", isPlaying() ? "M3 2h4v12H3zM9 2h4v12H9z" : "M4 2l10 6-10 6z");
    }

    function wait() {
      timer = setTimeout(() => {
        if (at < frames.length - 1) show(at + 1);
        else if (loop.checked) show(0);
        else return play(false);
        wait();
      }, 1000 / Number(speed.value));
    }

    function stepTo(i) { play(false); show(i); }

    function changeSpeed(by) {
      speed.selectedIndex = Math.max(0, Math.min(speed.options.length - 1, speed.selectedIndex + by));
    }

    const moves = {
      " ": () => play(!isPlaying()),
      ArrowLeft: () => stepTo(at - 1),
      ArrowRight: () => stepTo(at + 1),
      Home: () => stepTo(0),
      End: () => stepTo(frames.length - 1),
      ArrowUp: () => changeSpeed(1),
      ArrowDown: () => changeSpeed(-1),
    };

    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || !Object.hasOwn(moves, event.key)) return;
      const focus = document.activeElement;
      const inside = player.contains(focus);
      // The keys that scroll the page are the player's only within it.
      const free = focus === document.body && [" ", "ArrowLeft", "ArrowRight"].includes(event.key) && inView();
      if (!inside && !free) return;
      if (focus.tagName === "SELECT" || (event.key === " " && /BUTTON|INPUT/.test(focus.tagName) && focus !== scrub)) return;
      event.preventDefault();
      moves[event.key]();
    });

    function inView() {
      const box = screen.getBoundingClientRect();
      return box.bottom > 0 && box.top < innerHeight;
    }

    find("play").addEventListener("click", () => play(!isPlaying()));
    find("first").addEventListener("click", () => stepTo(0));
    find("back").addEventListener("click", () => stepTo(at - 1));
    find("forward").addEventListener("click", () => stepTo(at + 1));
    find("last").addEventListener("click", () => stepTo(frames.length - 1));
    scrub.addEventListener("input", () => stepTo(Number(scrub.value)));
    screen.addEventListener("click", () => play(!isPlaying()));

    function nearest(step) {
      let best = 0;
      frames.forEach(([other], i) => { if (Math.abs(other - step) < Math.abs(frames[best][0] - step)) best = i; });
      return best;
    }

    for (const { step, title } of data.alarms) {
      const mark = document.createElement("button"), last = frames.length - 1;
      mark.type = "button";
      mark.title = `${title}, step ${step}`;
      mark.setAttribute("aria-label", `Alarm: ${title}. Show the picture of step ${step}`);
      mark.style.left = `${last ? (100 * position(step)) / last : 0}%`;
      mark.addEventListener("click", () => stepTo(nearest(step)));
      find("marks").append(mark);
    }

    function position(step) { // on the scrubber, between the pictures before and after
      const after = frames.findIndex(([other]) => other >= step);
      if (after === -1) return frames.length - 1;
      if (after === 0) return 0;
      const [from, to] = [frames[after - 1][0], frames[after][0]];
      return after - 1 + (step - from) / (to - from);
    }

    for (const button of document.querySelectorAll(".jump")) {
      button.hidden = false;
      button.addEventListener("click", () => {
        stepTo(nearest(Number(button.dataset.step)));
        player.scrollIntoView();
        player.focus({ preventScroll: true });
      });
    }

    find("controls").hidden = false;
    const before = data.live ? recall() : null;
    if (before) {
      speed.selectedIndex = before.speed;
      loop.checked = before.loop;
    }
    show(before && !before.newest ? nearest(before.step) : frames.length - 1);
    if (before && before.playing) play(true);
    else play(false);

    addEventListener("pagehide", () => {
      if (!data.live) return;
      const newest = at === frames.length - 1 && !isPlaying();
      const state = { step: frames[at][0], newest, playing: isPlaying(), speed: speed.selectedIndex, loop: loop.checked };
      sessionStorage.setItem(STATE, JSON.stringify(state));
    });
  }

  function recall() {
    try {
      return JSON.parse(sessionStorage.getItem(STATE));
    } catch {
      return null;
    }
  }

  function watch() { // only in the page that --serve gives
    setInterval(async () => {
      try {
        const answer = await fetch("/version", { cache: "no-store" });
        if (answer.ok && (await answer.text()) !== data.live) location.reload();
        find("connection").textContent = answer.ok ? "live" : "the workdir cannot be read";
      } catch {
        find("connection").textContent = "the server has stopped";
      }
    }, data.seconds * 1000);
  }
})();
