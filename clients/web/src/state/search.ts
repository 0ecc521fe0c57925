// Where the next questions are searched for and which model answers them; kept for this tab.
import { effect, signal } from "@preact/signals";

import { models } from "../api/clients";
import type { Model } from "../gen/weft/v1/models_pb";

const KEY = "weft.datasets";

function recall(): string[] {
  try {
    return JSON.parse(sessionStorage.getItem(KEY) ?? "[]") as string[];
  } catch {
    return [];
  }
}

/** Empty: all. */
export const chosenDatasets = signal<readonly string[]>(recall());
effect(() => sessionStorage.setItem(KEY, JSON.stringify(chosenDatasets.value)));

/** Leaves out what does not exist any more: the server refuses it. */
export function keepChosen(existing: readonly string[]): void {
  const kept = chosenDatasets.value.filter((id) => existing.includes(id));
  if (kept.length !== chosenDatasets.value.length) chosenDatasets.value = kept;
}

/** The models to choose from; empty until they are known. */
export const availableModels = signal<readonly Model[]>([]);
/** Empty: the default one. */
export const chosenModel = signal("");

export async function loadModels(): Promise<void> {
  try {
    availableModels.value = (await models.listModels({})).models;
  } catch {
    // Without the list there is nothing to choose; the default model answers.
  }
}
