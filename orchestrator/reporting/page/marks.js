// Marks that can be told apart without colour.
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "triangle-down", "hexagram", "star-square"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
const PUBLISHED = "hourglass-open"; // no combination of one's own has it
const UNRELIABLE = "x-thin-open"; // over the mark itself
// The colours are the style's, for light and for dark ground.
const NUM_COLOURS = 8;
const markColour = (k) => style(`--mark-${k % NUM_COLOURS}`);
const nth = (list, k) => list[k % list.length];
