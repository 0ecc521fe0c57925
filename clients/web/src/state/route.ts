// Where the person is, kept in the URL's hash so that reload and back work.
import { signal } from "@preact/signals";

export type Route = { view: "chat"; id: string } | { view: "documents"; id: string };

function read(): Route {
  const [, view, id] = location.hash.split("/");
  const known = id ? safeDecode(id) : "";
  return view === "documents" ? { view, id: known } : { view: "chat", id: view === "c" ? known : "" };
}

function safeDecode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export const route = signal<Route>(read());
addEventListener("hashchange", () => (route.value = read()));

export const chatLink = (id: string): string => (id ? `#/c/${encodeURIComponent(id)}` : "#/");
export const documentsLink = (id = ""): string => (id ? `#/documents/${encodeURIComponent(id)}` : "#/documents");

export function go(link: string): void {
  if (location.hash !== link) location.hash = link;
}
