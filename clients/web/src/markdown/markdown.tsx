// Shows Markdown as elements, never as HTML text: nothing in a source can become script, style or a
// request to another host. Blocks that did not change keep their elements while text streams in.
import { Fragment, h, type ComponentChildren, type VNode } from "preact";
import { useRef, useState } from "preact/hooks";

import type { Reference } from "../gen/weft/v1/common_pb";
import { words } from "../state/settings";
import { Icon } from "../ui/icons";
import { attribute, parse, safeAddress, type Node } from "./parse";

interface MarkdownProps {
  source: string;
  references: readonly Reference[];
  /** References are still to come: a citation is shown, but opens nothing yet. */
  pending: boolean;
  onOpen: (id: number) => void;
}

interface Context extends Omit<MarkdownProps, "source"> {
  names: Map<number, string>;
}

export function Markdown(props: MarkdownProps) {
  const { source, references, pending, onOpen } = props;
  const cache = useRef<{ version: string; blocks: Map<string, VNode> }>({ version: "", blocks: new Map() });
  const version = `${references.length} ${pending} ${words.value.lang}`;
  const before = cache.current.version === version ? cache.current.blocks : new Map<string, VNode>();
  const context: Context = { references, pending, onOpen, names: new Map(references.map((one) => [one.id, one.name])) };
  const blocks = new Map<string, VNode>();
  parse(source).forEach(({ key, nodes }, index) => {
    blocks.set(key, before.get(key) ?? <Fragment key={index}>{show(nodes, context)}</Fragment>);
  });
  cache.current = { version, blocks };
  return <div class="prose">{[...blocks.values()]}</div>;
}

const show = (nodes: readonly Node[], context: Context): ComponentChildren[] => nodes.map((node) => one(node, context));

const PLAIN = new Set([
  ...["p", "ul", "ol", "li", "blockquote", "hr", "br"],
  ...["em", "strong", "s", "thead", "tbody", "tr", "th", "td"],
]);

function one({ token, children }: Node, context: Context): ComponentChildren {
  switch (token.type) {
    case "text":
    case "html_inline":
    case "html_block":
      return token.content;
    case "softbreak":
      return "\n";
    case "inline":
      return show(children, context);
    case "code_inline":
      return <code>{token.content}</code>;
    case "fence":
    case "code_block":
      return <Code text={token.content} />;
    case "citation":
      return <Citation id={Number(token.content)} context={context} />;
    case "image":
      return <Picture label={token.content} href={safeAddress(token)} />;
    case "link_open": {
      const href = safeAddress(token);
      const inside = show(children, context);
      if (!href) return <>{inside}</>;
      return (
        <a href={href} target="_blank" rel="noopener noreferrer nofollow">
          {inside}
        </a>
      );
    }
    case "table_open":
      return (
        <div class="overflow-x-auto" tabIndex={0}>
          <table>{show(children, context)}</table>
        </div>
      );
    case "ordered_list_open":
      return <ol start={Number(attribute(token, "start") || 1)}>{show(children, context)}</ol>;
    default:
      if (token.hidden) return show(children, context); // a tight list's paragraph
      if (token.type === "heading_open") return h(lowered(token.tag), null, ...show(children, context));
      if (!PLAIN.has(token.tag)) return token.content;
      return h(token.tag, alignment(token), ...show(children, context));
  }
}

/** An answer's headings stand below those of the page: "h1" becomes "h3". */
const lowered = (tag: string): string => `h${Math.min(6, Number(tag.slice(1)) + 2)}`;

/** A table's column: as a class, since the page's policy allows no style attribute. */
function alignment(token: Node["token"]): { class: string } | null {
  const style = attribute(token, "style");
  if (style.endsWith("right")) return { class: "text-right!" };
  return style.endsWith("center") ? { class: "text-center!" } : null;
}

function Citation({ id, context }: { id: number; context: Context }) {
  const name = context.names.get(id);
  if (name !== undefined) {
    return (
      <button
        type="button"
        class="cite"
        aria-label={words.value.openSource(id, name)}
        onClick={() => context.onOpen(id)}
      >
        {id}
      </button>
    );
  }
  return context.pending ? <span class="cite opacity-60">{id}</span> : <>[{id}]</>;
}

/** Pictures are not loaded: that would tell another host who reads what. */
function Picture({ label, href }: { label: string; href: string | null }) {
  const text = `${words.value.image}${label ? `: ${label}` : ""}`;
  if (!href) return <span class="text-soft">[{text}]</span>;
  return (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow">
      {text}
    </a>
  );
}

function Code({ text }: { text: string }) {
  return (
    <div class="group relative">
      <pre tabIndex={0}>
        <code>{text}</code>
      </pre>
      <div class="absolute top-2 right-2">
        <CopyButton label={words.value.copyCode} text={() => text} />
      </div>
    </div>
  );
}

export function CopyButton({ label, text }: { label: string; text: () => string }) {
  const [copied, setCopied] = useState(false);
  if (!navigator.clipboard) return null; // missing where the page comes over plain HTTP
  const copy = async () => {
    await navigator.clipboard.writeText(text());
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return (
    <button
      type="button"
      class="icon-button"
      aria-label={copied ? words.value.copied : label}
      title={label}
      onClick={() => void copy()}
    >
      <Icon name={copied ? "check" : "copy"} class="size-4.5" />
    </button>
  );
}
