// How far two units are apart by their histograms, as indexer/web/moved.py has it.

// The bins of both, each with those that only the other has, so that what is above each other is the same value.
export function onOneAxis(both) {
  const edges = new Map(both.flat().map(([lower, upper]) => [`${lower} ${upper}`, [lower, upper]]));
  const sorted = [...edges.values()].sort((one, other) => one[0] - other[0] || one[1] - other[1]);
  return both.map((bins) => {
    const counts = new Map(bins.map(([lower, upper, count]) => [`${lower} ${upper}`, count]));
    return sorted.map(([lower, upper]) => [lower, upper, counts.get(`${lower} ${upper}`) ?? 0]);
  });
}

const middle = ([lower, upper]) => (lower === -Infinity ? upper : upper === Infinity ? lower : (lower + upper) / 2);

// The area between the cumulative shares by the sum of the mean magnitudes; both on one axis. Null where there is no token.
export function distance([one, other]) {
  const totals = [one, other].map((bins) => bins.reduce((sum, bin) => sum + bin[2], 0));
  if (totals.includes(0)) return null;
  let [area, size, apart] = [0, 0, 0];
  one.forEach((bin, place) => {
    const shares = [bin[2] / totals[0], other[place][2] / totals[1]];
    if (place) area += Math.abs(apart) * (middle(bin) - middle(one[place - 1]));
    apart += shares[0] - shares[1];
    size += (shares[0] + shares[1]) * Math.abs(middle(bin));
  });
  return size ? area / size : 0;
}
