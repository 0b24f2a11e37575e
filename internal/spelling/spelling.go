// Package spelling guesses what somebody meant.
package spelling

import (
	"fmt"
	"iter"
	"strings"
)

// leastPrefix is how many letters of a name stand for it.
const leastPrefix = 3

// Nearest returns the name that begins with wrong, or else the one from which it
// differs in the fewest letters, fewer than bound: added, removed or replaced
// (Levenshtein). Empty: none is so near.
func Nearest(wrong string, names iter.Seq[string], bound int) (best string) {
	for name := range names {
		if len(wrong) >= leastPrefix && strings.HasPrefix(name, wrong) {
			return name
		}
		if d := distance(wrong, name); d < bound {
			best, bound = name, d
		}
	}
	return best
}

// Meant is the end of an error about a wrong name: whether the nearest one was meant.
// Empty: none is near.
func Meant(wrong string, names iter.Seq[string]) string {
	best := Nearest(wrong, names, max(3, len(wrong)/3))
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
