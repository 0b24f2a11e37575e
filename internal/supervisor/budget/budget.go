// Package budget bounds the memory that the specs of one owner's jobs take while the
// jobs have not ended.
package budget

import "github.com/joblet/joblet"

// Default is the byte budget of one owner.
const Default = 64 << 20

// rootOwner is root on this host, which no budget binds.
const rootOwner = "uid:0"

// Bytes is the byte budget of each owner. Its methods must not be called at the same
// time.
type Bytes struct {
	Max  int // of one owner
	held map[string]int
}

// Fits reports whether an owner's budget has room for more bytes.
func (b *Bytes) Fits(owner string, bytes int) bool {
	return owner == rootOwner || b.held[owner]+bytes <= b.Max
}

// Add charges an owner with bytes; a negative number takes a charge back.
func (b *Bytes) Add(owner string, bytes int) {
	if b.held == nil {
		b.held = map[string]int{}
	}
	if b.held[owner] += bytes; b.held[owner] == 0 {
		delete(b.held, owner)
	}
}

// Size returns about how much memory a spec takes.
func Size(spec joblet.Spec) int {
	const each = 32 // for a string itself
	n := len(spec.Command)
	for _, list := range [][]string{spec.Args, spec.DependsOn, spec.Uploads} {
		for _, s := range list {
			n += len(s) + each
		}
	}
	for _, m := range []map[string]string{spec.Env, spec.SecretEnv, spec.Labels} {
		for k, v := range m {
			n += len(k) + len(v) + 2*each
		}
	}
	return n
}
