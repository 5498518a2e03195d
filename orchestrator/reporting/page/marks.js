// Marks that can be told apart without colour.
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "pentagon", "star", "triangle-down", "hexagram", "star-square"];
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
// Okabe and Ito's colours, which people with colour-vision deficiencies can tell apart.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a6d00", "#7f7f7f"];
const PUBLISHED = "hourglass-open"; // no combination of one's own has it
const UNRELIABLE = "x-thin-open"; // over the mark itself
const nth = (list, k) => list[k % list.length];
