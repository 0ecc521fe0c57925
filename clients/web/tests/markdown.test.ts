// What becomes of Markdown before it is shown.
import assert from "node:assert/strict";
import { test } from "node:test";

import { parse, plainText, safeAddress, type Node } from "../src/markdown/parse";

function find(source: string, type: string): Node[] {
  const all = (nodes: Node[]): Node[] => nodes.flatMap((node) => [node, ...all(node.children)]);
  return all(parse(source).flatMap((block) => block.nodes)).filter((node) => node.token.type === type);
}

test("citations are tokens of their own, also side by side", () => {
  assert.deepEqual(
    find("Yes [1][2], **and [3]**.", "citation").map((node) => node.token.content),
    ["1", "2", "3"],
  );
});

test("what is no citation stays as it is", () => {
  for (const source of ["`a[1]`", "[2024](https://example.org)", "[1999]", "[x]"])
    assert.deepEqual(find(source, "citation"), [], source);
});

test("a link definition in a document does not take a citation over", () => {
  assert.equal(find("See [1].\n\n[1]: https://evil.example", "link_open").length, 0);
  assert.equal(find("See [1].\n\n[1]: https://evil.example", "citation").length, 2);
});

test("HTML is text", () => {
  assert.equal(find("<script>x</script> <b onclick=x>y</b>", "html_inline").length, 0);
  assert.equal(find("<div><img src=x></div>", "html_block").length, 0);
});

test("only pages and mail can be opened", () => {
  const address = (source: string) => find(source, "link_open").map((node) => safeAddress(node.token))[0] ?? null;
  assert.equal(address("[a](https://example.org/x)"), "https://example.org/x");
  assert.equal(address("[a](mailto:a@example.org)"), "mailto:a@example.org");
  const bad = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java&#115;cript:alert(1)",
    "data:text/html,x",
    "vbscript:x",
    "file:///x",
  ];
  for (const one of [...bad, "//example.org", "/api/v1/dev/token", "&#x6a;avascript:x"])
    assert.equal(address(`[a](${one})`), null, one);
});

test("a block keeps its key while another grows", () => {
  const before = parse("First.\n\nSecond");
  const after = parse("First.\n\nSecond one.");
  assert.equal(before[0]?.key, after[0]?.key);
  assert.notEqual(before[1]?.key, after[1]?.key);
});

test("a screen reader hears words, not marks", () => {
  assert.equal(
    plainText("**Yes**, `25` [days](https://x.example) [1].\n\n- one\n- two").replace(/\s+/g, " "),
    "Yes, 25 days . one two",
  );
});

test("a long answer is parsed quickly enough to stream", () => {
  const source = "A sentence with **bold** text and a citation [1]. ".repeat(2000);
  const start = performance.now();
  parse(source);
  assert(performance.now() - start < 1000);
});
