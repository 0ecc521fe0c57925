// What a person chose for this browser: language and colours.
import { computed, effect, signal } from "@preact/signals";

import { dictionary, type Language, type Words } from "../words";

type Theme = "light" | "dark";

function recall<T extends string>(key: string, allowed: readonly T[]): T | null {
  try {
    const value = localStorage.getItem(key);
    return allowed.find((one) => one === value) ?? null;
  } catch {
    return null; // storage is switched off
  }
}

function remember(key: string, value: string): void {
  try {
    localStorage.setItem(key, value);
  } catch {
    // storage is switched off: the choice holds for this visit
  }
}

const systemDark = matchMedia("(prefers-color-scheme: dark)");
const systemTheme = signal<Theme>(systemDark.matches ? "dark" : "light");
systemDark.addEventListener("change", () => (systemTheme.value = systemDark.matches ? "dark" : "light"));

const chosenTheme = signal<Theme | null>(recall("weft.theme", ["light", "dark"]));
export const theme = computed<Theme>(() => chosenTheme.value ?? systemTheme.value);

export const language = signal<Language>(
  recall("weft.language", ["en", "zh"]) ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"),
);
export const words = computed<Words>(() => dictionary[language.value]);

export function toggleTheme(): void {
  chosenTheme.value = theme.value === "dark" ? "light" : "dark";
  remember("weft.theme", chosenTheme.value);
}

export function toggleLanguage(): void {
  language.value = language.value === "en" ? "zh" : "en";
  remember("weft.language", language.value);
}

effect(() => {
  document.documentElement.lang = words.value.lang;
});
effect(() => {
  if (chosenTheme.value) document.documentElement.dataset["theme"] = chosenTheme.value;
});
