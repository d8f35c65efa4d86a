const root = document.documentElement, asked = new URLSearchParams(location.hash.slice(1));
const set = (lang) => { root.dataset.lang = lang; root.lang = lang === "zh" ? "zh-CN" : "en"; };
if (root.dataset.lang === "auto") set((navigator.language || "en").startsWith("zh") ? "zh" : "en");
if (asked.get("lang")) set(asked.get("lang") === "zh" ? "zh" : "en");
if (asked.get("theme")) root.dataset.theme = asked.get("theme");
document.getElementById("lang").onclick = () => set(root.dataset.lang === "zh" ? "en" : "zh");
document.getElementById("theme").onclick = () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
