// Arrows, page keys and the space bar go from slide to slide.
const steps = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1,
  ArrowLeft: -1, ArrowUp: -1, PageUp: -1 };
addEventListener("keydown", event => {
  if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
  const slides = [...document.querySelectorAll(".slide")];
  const here = slides.filter(s => s.getBoundingClientRect().top < innerHeight / 3).length - 1;
  const next = Math.max(0, Math.min(slides.length - 1, here + steps[event.key]));
  slides[next].scrollIntoView();
  event.preventDefault();
});
