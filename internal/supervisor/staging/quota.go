package supervisor

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/jobdir"
	"github.com/joblet/joblet/internal/store"
)

// maxStdin bounds standard input that is a file, as archive.DefaultLimits bounds
// a job's files.
const maxStdin = 1 << 30

// quota counts what each owner has in the directories of jobs: what is staged, what
// came along with jobs that have not ended, and all that ended jobs have left. What
// a job writes counts once it has ended: until then its own limits bound it. A file that
// several jobs of an owner share counts once.
//
// A nil quota counts nothing and refuses nothing. Root on this host is not bound.
type quota struct {
	most int64 // of one owner

	mu    sync.Mutex
	used  map[string]int64  // by owner
	input map[string]charge // by id of a job that has not ended or is being staged

	// Each job is charged for all that it has, and what an owner shares is taken off again.
	shared map[fileID]*share
	shares map[string][]*share // by id of a job
}

// fileID tells a file in the jobs' directories from the others.
type fileID struct{ device, inode uint64 }

// share is a file that came along with several jobs.
type share struct {
	id     fileID
	bytes  int64
	jobs   map[string]string // their owners
	owners map[string]int    // how many of those jobs each has
}

// sharedFile returns what a file is and what it takes, and whether it has other names.
func sharedFile(name string) (id fileID, bytes int64, several bool) {
	fi, err := os.Lstat(name)
	if err != nil {
		return fileID{}, 0, false
	}
	st := fi.Sys().(*syscall.Stat_t)
	return fileID{uint64(st.Dev), st.Ino}, st.Blocks * 512, st.Nlink > 1
}

type charge struct {
	owner string
	bytes int64
}

// openQuota counts what the ended jobs have. Retention needs to know what is shared, too.
func openQuota(ctx context.Context, most, retain int64, records *store.Store) (*quota, error) {
	switch {
	case most <= 0 && retain <= 0:
		return nil, nil
	case most <= 0:
		most = math.MaxInt64
	}
	used, err := records.OwnerBytes(ctx)
	if err != nil {
		return nil, err
	}
	return &quota{most: most, used: used, input: map[string]charge{}, shared: map[fileID]*share{}, shares: map[string][]*share{}}, nil
}

// reserve counts more bytes of what comes along with a job, if its owner may have
// them. With 0 it asks whether he may have any.
func (q *quota) reserve(owner, id string, bytes int64) error {
	if q == nil {
		return nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.check(owner, bytes); err != nil {
		return err
	}
	q.add(owner, id, bytes)
	return nil
}

// check reports whether an owner may have more. quota.mu is held.
func (q *quota) check(owner string, bytes int64) error {
	if owner != rootOwner && (bytes > q.most-q.used[owner] || bytes == 0 && q.used[owner] >= q.most) {
		return joblet.Errorf(joblet.ResourceExhausted, "the files, inputs, logs and results of %s's jobs take %d MiB of the %d MiB that this daemon keeps for one owner (max-owner-size): delete jobs that have ended (rnx job delete, rnx job prune)",
			owner, q.used[owner]>>20, q.most>>20)
	}
	return nil
}

// link counts a file that came along with one job and is now to be another's as well, if
// that one's owner may have it.
func (q *quota) link(name, from, fromOwner, to, owner string) error {
	if q == nil {
		return nil
	}
	id, bytes, _ := sharedFile(name)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.hold(id, bytes, from, fromOwner)
	if q.shared[id].owners[owner] > 0 {
		bytes = 0
	}
	if err := q.check(owner, bytes); err != nil {
		return err
	}
	q.add(owner, to, q.shared[id].bytes)
	q.hold(id, 0, to, owner)
	return nil
}

// hold notes that a job has a file, which is charged. quota.mu is held.
func (q *quota) hold(id fileID, bytes int64, job, owner string) {
	sh := q.shared[id]
	if sh == nil {
		sh = &share{id: id, bytes: bytes, jobs: map[string]string{}, owners: map[string]int{}}
		q.shared[id] = sh
	}
	if _, ok := sh.jobs[job]; ok {
		return
	}
	if sh.owners[owner] > 0 {
		q.take(owner, sh.bytes)
	}
	sh.jobs[job] = owner
	sh.owners[owner]++
	q.shares[job] = append(q.shares[job], sh)
}

// letGo notes that a job has no file any more, before the charge for it is taken back.
// quota.mu is held.
func (q *quota) letGo(job string) {
	for _, sh := range q.shares[job] {
		owner := sh.jobs[job]
		if sh.owners[owner] > 1 {
			q.used[owner] += sh.bytes
		}
		delete(sh.jobs, job)
		if sh.owners[owner]--; sh.owners[owner] == 0 {
			delete(sh.owners, owner)
		}
		if len(sh.jobs) == 0 {
			delete(q.shared, sh.id)
		}
	}
	delete(q.shares, job)
}

// foundShares notes which files the jobs' directories share, when all of them are counted.
func (q *quota) foundShares(ctx context.Context, jobs string, records *store.Store) error {
	if q == nil {
		return nil
	}
	entries, err := os.ReadDir(jobs)
	if err != nil {
		return err
	}
	for _, e := range entries {
		for _, name := range []string{jobdir.FilesName, jobdir.StdinName} {
			id, bytes, several := sharedFile(filepath.Join(jobs, e.Name(), name))
			if !several || !e.IsDir() {
				continue
			}
			rec, err := records.Get(ctx, e.Name())
			if joblet.KindOf(err) == joblet.NotFound || joblet.KindOf(err) == joblet.InvalidArgument {
				break // it is being deleted
			}
			if err != nil {
				return err
			}
			q.mu.Lock()
			q.hold(id, bytes, rec.ID, rec.Owner)
			q.mu.Unlock()
		}
	}
	return nil
}

// saved returns how much less the jobs' files take because jobs share them.
func (q *quota) saved() (bytes int64) {
	if q == nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, sh := range q.shared {
		bytes += sh.bytes * int64(len(sh.jobs)-1)
	}
	return bytes
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
	q.letGo(id)
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
func (q *quota) deleted(owner, id string, bytes int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.letGo(id)
	q.take(owner, bytes)
}
