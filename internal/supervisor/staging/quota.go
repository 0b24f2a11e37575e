package staging

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

// rootOwner is root on this host, which no quota binds.
const rootOwner = "uid:0"

// Quota accounts for the disk space of each owner in the directories of jobs: staged
// uploads, the input of jobs that have not ended, and all files of ended jobs. What a
// running job writes counts once the job has ended; until then its own limits bound
// it. A file that several jobs of an owner share counts once.
//
// A nil Quota counts nothing and refuses nothing.
type Quota struct {
	max int64 // bytes of one owner

	mu    sync.Mutex
	used  map[string]int64  // by owner
	input map[string]charge // by id of a job that has not ended or is being staged

	// Each job is charged for all its files; what an owner's jobs share is deducted again.
	shared map[fileID]*share
	shares map[string][]*share // by id of a job
}

// fileID identifies a file in the jobs' directories.
type fileID struct{ device, inode uint64 }

// share is an input file of several jobs.
type share struct {
	id     fileID
	bytes  int64
	jobs   map[string]string // their owners
	owners map[string]int    // how many of those jobs each has
}

// sharedFile returns the identity of a file, its size on disk, and whether it has other
// names.
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

// OpenQuota returns the quota of limit bytes for each owner, with the ended jobs
// counted. Without a limit (0) it is nil, unless retention by size needs to know which
// files are shared.
func OpenQuota(ctx context.Context, limit int64, retention bool, records *store.Store) (*Quota, error) {
	switch {
	case limit <= 0 && !retention:
		return nil, nil
	case limit <= 0:
		limit = math.MaxInt64
	}
	used, err := records.OwnerBytes(ctx)
	if err != nil {
		return nil, err
	}
	return &Quota{max: limit, used: used, input: map[string]charge{}, shared: map[fileID]*share{}, shares: map[string][]*share{}}, nil
}

// Reserve counts more bytes of a job's input, or refuses them if the owner's quota is
// used up. With 0 bytes it only checks that the quota is not used up.
func (q *Quota) Reserve(owner, id string, bytes int64) error {
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

// check refuses more bytes than the owner has left. Quota.mu is held.
func (q *Quota) check(owner string, bytes int64) error {
	if owner != rootOwner && (bytes > q.max-q.used[owner] || bytes == 0 && q.used[owner] >= q.max) {
		return joblet.Errorf(joblet.ResourceExhausted, "the files, inputs, logs and results of %s's jobs take %d MiB of the %d MiB that this daemon keeps for one owner (max-owner-size): delete jobs that have ended (rnx job delete, rnx job prune)",
			owner, q.used[owner]>>20, q.max>>20)
	}
	return nil
}

// link counts an input file of one job that becomes the input of another as well, or
// refuses it if the quota of that job's owner is used up.
func (q *Quota) link(name, from, fromOwner, to, owner string) error {
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

// hold notes that a job has a file, which is charged to the job already. Quota.mu is held.
func (q *Quota) hold(id fileID, bytes int64, job, owner string) {
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

// unshare notes that a job's files are gone, before the charge for them is taken back.
// Quota.mu is held.
func (q *Quota) unshare(job string) {
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

// RestoreShares notes which files the jobs' directories share, after all jobs are
// counted.
func (q *Quota) RestoreShares(ctx context.Context, jobs string, records *store.Store) error {
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

// Saved returns how many bytes the jobs' files take less because jobs share them.
func (q *Quota) Saved() (bytes int64) {
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

// Restore counts the input of a job that a former daemon accepted.
func (q *Quota) Restore(owner, id string, bytes int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(owner, id, bytes)
}

// add counts. Quota.mu is held.
func (q *Quota) add(owner, id string, bytes int64) {
	if bytes == 0 {
		return
	}
	q.used[owner] += bytes
	c := q.input[id]
	q.input[id] = charge{owner, c.bytes + bytes}
}

// Used returns how many bytes are counted for an owner.
func (q *Quota) Used(owner string) int64 {
	if q == nil {
		return 0
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.used[owner]
}

// Shared returns how many files belong to several jobs, or did until some were deleted.
func (q *Quota) Shared() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.shared)
}

// release takes back the charge of an upload that was discarded.
func (q *Quota) release(id string) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unshare(id)
	q.drop(id)
}

// drop takes back the charge for a job's input. Quota.mu is held.
func (q *Quota) drop(id string) {
	c, ok := q.input[id]
	if !ok {
		return
	}
	delete(q.input, id)
	q.take(c.owner, c.bytes)
}

// take deducts bytes. Quota.mu is held.
func (q *Quota) take(owner string, bytes int64) {
	if q.used[owner] -= bytes; q.used[owner] <= 0 {
		delete(q.used, owner)
	}
}

// End counts all files of a job that has ended, in place of its input.
func (q *Quota) End(owner, id string, bytes int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.drop(id)
	q.used[owner] += bytes
}

// Delete takes back what an ended job took.
func (q *Quota) Delete(owner, id string, bytes int64) {
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.unshare(id)
	q.take(owner, bytes)
}
