package queue

// Resource is something of which the node has a limited amount and each running
// job takes a part.
type Resource int

// The resources that jobs are admitted by.
const (
	Slots     Resource = iota // running jobs
	Memory                    // bytes, as far as jobs have a limit
	resources                 // how many there are
)

// Amounts is an amount of each resource.
type Amounts [resources]int64

// pool counts what running jobs take. The zero pool has no limits.
type pool struct {
	limits Amounts // 0: no limit
	used   Amounts
}

// lacks returns the first resource of which there is too little for needs.
func (p *pool) lacks(needs Amounts) (r Resource, lacking bool) {
	for r := range resources {
		if limit := p.limits[r]; limit > 0 && needs[r] > 0 && p.used[r]+needs[r] > limit {
			return r, true
		}
	}
	return 0, false
}

func (p *pool) take(needs Amounts) {
	for r := range needs {
		p.used[r] += needs[r]
	}
}

func (p *pool) give(held Amounts) {
	for r := range held {
		p.used[r] -= held[r]
	}
}
