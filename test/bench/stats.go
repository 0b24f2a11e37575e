package main

import (
	"math"
	"slices"
	"time"
)

// summary describes the times of a contender's runs, in milliseconds.
type summary struct {
	Runs   int     `json:"runs"`
	P10    float64 `json:"p10_ms"`
	Median float64 `json:"median_ms"`
	P90    float64 `json:"p90_ms"`
}

// summarize returns nil for no times.
func summarize(times []time.Duration) *summary {
	if len(times) == 0 {
		return nil
	}
	return &summary{
		Runs:   len(times),
		P10:    milliseconds(quantile(times, 0.1)),
		Median: milliseconds(quantile(times, 0.5)),
		P90:    milliseconds(quantile(times, 0.9)),
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// quantile returns the time that the share q of all times does not exceed,
// between two neighbours in proportion (method 7 of Hyndman and Fan, 1996).
// There must be at least one time, and q must be between 0 and 1.
func quantile(times []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return sorted[low] + time.Duration(math.Round((at-float64(low))*float64(sorted[high]-sorted[low])))
}
