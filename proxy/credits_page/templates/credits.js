// The page works without this. With it: times in the viewer's own zone, one click buys once, and news comes by itself.
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
for (const time of document.querySelectorAll("time[datetime]")) {
  const moment = new Date(time.dateTime);
  if (!Number.isNaN(moment.getTime())) {
    time.textContent = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    time.title = time.dateTime;
  }
}
for (const place of document.querySelectorAll("[data-zone]")) place.textContent = zone || "your own time zone";
// A second click on a button that buys would be a second click: one is enough.
for (const form of document.querySelectorAll("form[data-once]")) {
  form.addEventListener("submit", () => {
    for (const button of form.querySelectorAll("button")) setTimeout(() => { button.disabled = true; });
  });
}
// A sign-in link that puts nobody else's credits on this screen needs no click.
document.querySelector("form[data-at-once]")?.requestSubmit();
// Back from the payment page by the Back key: the buttons work again.
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
// A payment that is not confirmed yet: look again for about a minute.
if (document.querySelector("[data-waiting]")) {
  const key = `looks ${location.search}`, looks = Number(sessionStorage.getItem(key) || 0);
  if (looks < 30) setTimeout(() => { sessionStorage.setItem(key, String(looks + 1)); location.reload(); }, 2000);
}
// Copying a new key.
for (const button of document.querySelectorAll("button[data-copy]")) {
  const source = document.getElementById(button.dataset.copy);
  if (!navigator.clipboard || !source) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not copied: mark it and copy by hand";
    }
  });
}
