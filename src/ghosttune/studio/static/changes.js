// Changes of rows in words.
const DONE = {drop: "dropped", edit: "edited", weight: "weighted", flag: "flagged", add: "added"};

export function described(change) {
  const parts = [change.drop && "dropped", change.edit && "edited", change.add && `added to ${change.split ?? "train"}`,
    change.weight > 1 && `weight ${change.weight}`, change.flag && `flag: ${change.flag}`];
  return parts.filter(Boolean).join(", ");
}

export const counted = changes => Object.entries(changes).filter(([, count]) => count).map(([what, count], place) =>
  `${count} ${place ? "" : count === 1 ? "row " : "rows "}${DONE[what] ?? what.replaceAll("_", " ")}`).join(", ");
