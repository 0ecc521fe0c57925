// Markdown to tokens. HTML in the source stays text; a citation "[1]" becomes a token of its own.
import MarkdownIt, { type Token } from "markdown-it";

const parser = new MarkdownIt("default", { html: false, linkify: false, breaks: false });
// "[1]: https://…" would turn every citation "[1]" into that link.
parser.disable("reference");

/** A citation is short: a year in brackets is none. */
const CITATION = /\[(\d{1,3})\]/y;

parser.inline.ruler.after("link", "citation", (state, silent) => {
  CITATION.lastIndex = state.pos;
  const found = CITATION.exec(state.src);
  if (!found) return false;
  if (!silent) {
    const token = state.push("citation", "", 0);
    token.content = found[1] ?? "";
  }
  state.pos += found[0].length;
  return true;
});

/** Only what opens a page or a mail; never a script, a file or data. */
const SAFE_ADDRESS = /^(https?|mailto):/i;

export interface Node {
  token: Token;
  children: Node[];
}

/** The source as a tree of tokens; `key` of a top-level block changes only when the block does. */
export function parse(source: string): { key: string; nodes: Node[] }[] {
  const tokens = parser.parse(source, {});
  const lines = source.split("\n");
  return tree(tokens).map((node, index) => {
    const [start, end] = node.token.map ?? [0, lines.length];
    return { key: `${index}:${lines.slice(start, end).join("\n")}`, nodes: [node] };
  });
}

function tree(tokens: readonly Token[]): Node[] {
  const root: Node[] = [];
  const open: Node[][] = [root];
  for (const token of tokens) {
    if (token.nesting === -1) {
      open.pop();
      continue;
    }
    const node: Node = { token, children: token.children ? tree(token.children) : [] };
    open.at(-1)?.push(node);
    if (token.nesting === 1) open.push(node.children);
  }
  return root;
}

export function attribute(token: Token, name: string): string {
  return String(token.attrs?.find(([one]) => one === name)?.[1] ?? "");
}

/** The address of a link or an image, or null where it must not be followed. */
export function safeAddress(token: Token): string | null {
  const address = attribute(token, token.type === "image" ? "src" : "href");
  return SAFE_ADDRESS.test(address) ? address : null;
}

/** The numbers that the source cites. */
export function cited(source: string): Set<number> {
  const found = new Set<number>();
  const look = (nodes: readonly Node[]): void => {
    for (const { token, children } of nodes) {
      if (token.type === "citation") found.add(Number(token.content));
      look(children);
    }
  };
  for (const block of parse(source)) look(block.nodes);
  return found;
}

/** The words alone, for a screen reader. */
export function plainText(source: string): string {
  return parse(source)
    .map((block) => block.nodes.map(spoken).join(" "))
    .join("\n")
    .trim();
}

function spoken({ token, children }: Node): string {
  if (token.type === "citation") return "";
  if (token.type === "softbreak" || token.type === "hardbreak") return " ";
  return children.length > 0 ? children.map(spoken).join(token.type === "inline" ? "" : " ") : token.content;
}
