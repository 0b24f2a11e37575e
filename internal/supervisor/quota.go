package supervisor

import (
	"context"
	"sync"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/store"
)

// maxStdin bounds standard input that is a file, as archive.DefaultLimits bounds
// a job's files.
const maxStdin = 1 << 30

// quota counts what each owner has in the directories of jobs: what is staged, what
// came along with jobs that have not ended, and all that ended jobs have left. What
// a job writes counts once it has ended: until then its own limits bound it.
//
// A nil quota counts nothing and refuses nothing. Root on this host is not bound.
type quota struct {
	most int64 // of one owner

	mu    sync.Mutex
	used  map[string]int64  // by owner
	input map[string]charge // by id of a job that has not ended or is being staged
}

type charge struct {
	owner string
	bytes int64
}

// openQuota counts what the ended jobs have.
func openQuota(ctx context.Context, most int64, records *store.Store) (*quota, error) {
	if most <= 0 {
		return nil, nil
	}
	used, err := records.OwnerBytes(ctx)
	if err != nil {
		return nil, err
	}
	return &quota{most: most, used: used, input: map[string]charge{}}, nil
}

// reserve counts more bytes of what comes along with a job, if its owner may have
// them. With 0 it asks whether he may have any.
func (q *quota) reserve(owner, id string, bytes int64) error {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if owner != rootOwner && (q.used[owner]+bytes > q.most || bytes == 0 && q.used[owner] >= q.most) {
		return joblet.Errorf(joblet.ResourceExhausted, "the files, inputs, logs and results of %s's jobs take %d MiB of the %d MiB that this daemon keeps for one owner (max-owner-size): delete jobs that have ended (rnx job delete, rnx job prune)",
			owner, q.used[owner]>>20, q.most>>20)
	}
	q.add(owner, id, bytes)
	return nil
}

// found counts what came along with a job that recovery has found.
func (q *quota) found(owner, id string, bytes int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(owner, id, bytes)
}

// add counts. quota.mu is held.
func (q *quota) add(owner, id string, bytes int64) {
	if bytes == 0 {
		return
	}
	q.used[owner] += bytes
	c := q.input[id]
	q.input[id] = charge{owner, c.bytes + bytes}
}

// release takes back what was counted for a job that there is no more.
func (q *quota) release(id string) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(id)
}

// drop forgets what came along with a job. quota.mu is held.
func (q *quota) drop(id string) {
	c, ok := q.input[id]
	if !ok {
		return
	}
	delete(q.input, id)
	q.take(c.owner, c.bytes)
}

// take is called with quota.mu held.
func (q *quota) take(owner string, bytes int64) {
	if q.used[owner] -= bytes; q.used[owner] <= 0 {
		delete(q.used, owner)
	}
}

// ended counts all that an ended job has, in place of what came along with it.
func (q *quota) ended(owner, id string, bytes int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(id)
	q.used[owner] += bytes
}

// deleted takes back what an ended job had.
func (q *quota) deleted(owner string, bytes int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.take(owner, bytes)
}
