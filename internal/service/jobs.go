package service

import (
	"context"
	"errors"
	"io"
	"slices"
	"syscall"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/supervisor"
	"github.com/joblet/joblet/internal/supervisor/staging"
)

const (
	// stopAnswer is after what time Stop returns at the latest: existing clients wait
	// for 10 s.
	stopAnswer = 8 * time.Second

	historyBatch = 100 // samples that History holds
)

// Jobs does the operations on jobs. A job is named by its id, the start of one, or a
// name, of which the caller's own go first.
type Jobs struct {
	*policy
	sup     *supervisor.Supervisor
	windows windows
}

// Event is something that happens to a job that is followed.
type Event = supervisor.Event

// Output is where what happens to a job goes.
type Output struct {
	Gate supervisor.Gate // says how much of the output may come next; nil: any
	Emit func(Event) error
}

// Submission is a job to start.
type Submission struct {
	Spec joblet.Spec

	// Public are limits of the public API, which are fitted to what this host can give.
	// Limits of Spec take precedence.
	Public joblet.Limits

	// Files is a tar archive of files for the job's /work; nil: there are none.
	Files io.Reader

	// Stdin is standard input, if Spec asks for it: read to its end before the job is
	// accepted, or as long as the job reads. It is nil if the caller cannot send any.
	Stdin io.Reader

	// Keys returns what is typed into the job's terminal, if Spec asks for one, until it
	// fails. Like Stdin, it must fail soon after Submit has returned.
	Keys func() (Keys, error)

	// Keep records a job whose command cannot be executed as FAILED instead of
	// returning an error.
	Keep bool

	// Follow is where the job's events go, to its end; nil: it is left alone.
	Follow *Output
}

// Submit starts a job, in whatever way it comes. It returns the job once it is accepted,
// or with Follow once it has ended.
func (s *Jobs) Submit(ctx context.Context, c Caller, sub Submission) (job joblet.Job, err error) {
	err = s.do(ctx, c, SubmitJob, Subject{Target: sub.Spec.Command}, func(ctx context.Context, open *call) error {
		if job, err = s.accept(ctx, c, &sub); err != nil {
			return err
		}
		id := job.ID // of job, which is empty after an error
		open.made = id
		if sub.Follow == nil {
			return nil
		}
		if err := mayHave(c, job.Spec.Security); err != nil { // an idempotency key may stand for another
			return err
		}
		s.record(open, nil)
		if sub.Stdin != nil && sub.Spec.Stdin == joblet.StdinStream {
			go s.feed(ctx, id, sub.Stdin) // ends with the call
			defer func() {
				if ctx.Err() != nil { // a job that has not begun would wait for input for ever
					_, _ = s.sup.Cancel(context.WithoutCancel(ctx), id)
				}
			}()
		}
		follow := joblet.LogOptions{Follow: true}
		if sub.Keys != nil && sub.Spec.Terminal != (joblet.WindowSize{}) {
			go s.typing(ctx, id, sub.Spec.Terminal, false, nil, sub.Keys) // as above
			job, err = s.followTerminal(ctx, id, 1, follow, *sub.Follow)
		} else {
			job, err = s.sup.Follow(ctx, id, follow, sub.Follow.Gate, sub.Follow.Emit)
		}
		return err
	})
	return job, err
}

// accept makes a job of a submission, with all that comes along with it.
func (s *Jobs) accept(ctx context.Context, c Caller, sub *Submission) (joblet.Job, error) {
	public, warnings, err := s.sup.Fit(sub.Public)
	if err != nil {
		return joblet.Job{}, err
	}
	spec := &sub.Spec
	spec.Limits, spec.Warnings = spec.Limits.Or(public), warnings
	if err := s.checkDependencies(ctx, c, spec); err != nil {
		return joblet.Job{}, err
	}
	switch {
	case spec.Stdin != joblet.StdinNone && sub.Stdin == nil:
		return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "cannot pass standard input in this call: use SubmitJob")
	case spec.Stdin == joblet.StdinStream && sub.Follow == nil:
		return joblet.Job{}, joblet.Errorf(joblet.InvalidArgument, "cannot stream standard input to a detached job: pass it as a file")
	}
	if sub.Files != nil || sub.Stdin != nil { // before anything is taken
		if err := spec.Validate(); err != nil {
			return joblet.Job{}, err
		}
	}
	if err := mayHave(c, spec.Security); err != nil {
		return joblet.Job{}, err
	}
	staged, err := s.stage(c, sub)
	if err != nil {
		return joblet.Job{}, err
	}
	if sub.Keep {
		return s.sup.Record(ctx, *spec, c.Name, staged)
	}
	return s.sup.Submit(ctx, *spec, c.Name, staged)
}

// stage takes what comes along with a job before it is accepted; nil for nothing.
func (s *Jobs) stage(c Caller, sub *Submission) (_ *staging.Upload, err error) {
	stdin := sub.Spec.Stdin == joblet.StdinFile
	if sub.Files == nil && !stdin {
		return nil, nil
	}
	staged := s.sup.Stage(c.Name)
	defer func() {
		if err != nil {
			err = joinDiscard(err, staged)
		}
	}()
	if sub.Files != nil {
		if err := staged.Files(sub.Files); err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.Discard, sub.Files); err != nil { // padding behind the archive's end
			return nil, err
		}
	}
	if stdin {
		if err := staged.Stdin(sub.Stdin); err != nil {
			return nil, err
		}
	}
	return staged, nil
}

func joinDiscard(err error, staged *staging.Upload) error {
	if undo := staged.Discard(); undo != nil {
		return joblet.Errorf(joblet.KindOf(err), "%w (cleanup also failed: %w)", err, undo)
	}
	return err
}

// feed hands the caller's standard input to the job. A caller that disconnects does not
// end the job's input, which the job would take for the end of the file.
func (s *Jobs) feed(ctx context.Context, id string, stdin io.Reader) {
	w, err := s.sup.OpenStdin(ctx, id)
	if err != nil {
		return // the job has ended, and the follower says how
	}
	defer w.Close()
	defer context.AfterFunc(ctx, func() { _ = w.Close() })() // a write waits as long as the job does not read
	if _, err := io.Copy(w, stdin); err == nil {
		_ = w.CloseWrite() // it has ended
	}
}

// Rerun submits a job like one that there is, with these secret variables.
func (s *Jobs) Rerun(ctx context.Context, c Caller, ref string, secrets map[string]string) (job joblet.Job, err error) {
	err = s.onJob(ctx, c, RerunJob, ref, Subject{Detail: "rerun of " + clip(ref)}, func(ctx context.Context, open *call, id string) error {
		open.subject.Detail = "rerun of " + id
		job, err = s.sup.Rerun(ctx, id, c.Name, secrets)
		open.made = job.ID
		return err
	})
	return job, err
}

// Follow hands what happens to a job to out, and returns the job as it is at the end.
func (s *Jobs) Follow(ctx context.Context, c Caller, ref string, opt joblet.LogOptions, out Output) (job joblet.Job, err error) {
	err = s.onJob(ctx, c, FollowJob, ref, Subject{}, func(ctx context.Context, _ *call, id string) error {
		job, err = s.sup.Follow(ctx, id, opt, out.Gate, out.Emit)
		return err
	})
	return job, err
}

// Show returns a job with what it has taken up to now.
func (s *Jobs) Show(ctx context.Context, c Caller, ref string) (joblet.Job, error) {
	return s.act(ctx, c, ShowJob, ref, "", (*supervisor.Supervisor).Measured)
}

// Wait returns a job once it has ended.
func (s *Jobs) Wait(ctx context.Context, c Caller, ref string) (joblet.Job, error) {
	return s.act(ctx, c, WaitJob, ref, "", (*supervisor.Supervisor).Wait)
}

// act does an operation on one job that returns it. It takes method expressions: a method
// value would look into the supervisor before the caller is known.
func (s *Jobs) act(ctx context.Context, c Caller, op Operation, ref, detail string, act func(sup *supervisor.Supervisor, ctx context.Context, id string) (joblet.Job, error)) (job joblet.Job, err error) {
	err = s.onJob(ctx, c, op, ref, Subject{Detail: detail}, func(ctx context.Context, _ *call, id string) error {
		job, err = act(s.sup, ctx, id)
		return err
	})
	return job, err
}

// errEnough ends a list that has as many jobs as were wanted.
var errEnough = errors.New("enough")

// List calls fn on the jobs that pass the filter, newest first: those of others in
// outline, if the caller may not read them. Before it reads more it calls ready, unless
// that is nil, which returns how many bytes may be read.
func (s *Jobs) List(ctx context.Context, c Caller, f joblet.Filter, ready func() (int, error), fn func(joblet.Job) error) error {
	return s.do(ctx, c, ListJobs, Subject{}, func(ctx context.Context, _ *call) error {
		for _, ref := range []*string{&f.Parent, &f.Before} {
			if *ref == "" {
				continue
			}
			job, err := s.sup.Find(ctx, *ref, c.Name)
			if err != nil {
				return err
			}
			*ref = job.ID
		}
		left := f.Limit
		if len(f.Labels) > 0 && !mayAll(c, reads) {
			f.Limit = 0 // of those that pass by their labels not all may be shown
		}
		err := s.sup.EachJob(ctx, f, ready, func(job joblet.Job) error {
			job, ok := s.shown(c, f, job)
			if !ok {
				return nil
			}
			if err := fn(job); err != nil {
				return err
			}
			if left--; left == 0 {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil
		}
		return err
	})
}

// Files writes the files of a job's /work that match the patterns as a tar archive.
func (s *Jobs) Files(ctx context.Context, c Caller, ref string, patterns []string, w io.Writer) error {
	return s.onJob(ctx, c, ReadFiles, ref, Subject{}, func(ctx context.Context, _ *call, id string) error {
		return s.sup.Files(ctx, id, patterns, w)
	})
}

// Stop ends a job. It returns it once it has ended, or after some seconds as it is then.
func (s *Jobs) Stop(ctx context.Context, c Caller, ref string, opt joblet.StopOptions) (joblet.Job, error) {
	return s.act(ctx, c, StopJob, ref, stopDetail(opt), func(sup *supervisor.Supervisor, ctx context.Context, id string) (joblet.Job, error) {
		return sup.StopWithin(ctx, id, opt, stopAnswer)
	})
}

// Cancel ends a job that waits.
func (s *Jobs) Cancel(ctx context.Context, c Caller, ref string) (joblet.Job, error) {
	return s.act(ctx, c, CancelJob, ref, "", (*supervisor.Supervisor).Cancel)
}

// Signal sends a signal, by its Linux number, to a job.
func (s *Jobs) Signal(ctx context.Context, c Caller, ref string, signal int, defaultAction bool) error {
	return s.onJob(ctx, c, SignalJob, ref, Subject{Detail: signalName(signal)}, func(ctx context.Context, _ *call, id string) error {
		return s.sup.Signal(ctx, id, syscall.Signal(signal), defaultAction)
	})
}

// Pause freezes a job that runs.
func (s *Jobs) Pause(ctx context.Context, c Caller, ref string) (joblet.Job, error) {
	return s.act(ctx, c, PauseJob, ref, "", (*supervisor.Supervisor).Pause)
}

// Resume is the reverse of Pause.
func (s *Jobs) Resume(ctx context.Context, c Caller, ref string) (joblet.Job, error) {
	return s.act(ctx, c, ResumeJob, ref, "", (*supervisor.Supervisor).Resume)
}

// Update changes the limits of a job.
func (s *Jobs) Update(ctx context.Context, c Caller, ref string, l joblet.Limits) (joblet.Job, error) {
	return s.act(ctx, c, UpdateJob, ref, limitsDetail(l), func(sup *supervisor.Supervisor, ctx context.Context, id string) (joblet.Job, error) {
		return sup.Update(ctx, id, l)
	})
}

// Delete deletes a job that has ended, and returns its id.
func (s *Jobs) Delete(ctx context.Context, c Caller, ref string) (id string, err error) {
	err = s.onJob(ctx, c, DeleteJob, ref, Subject{}, func(ctx context.Context, _ *call, found string) error {
		id = found
		return s.sup.Delete(ctx, id)
	})
	return id, err
}

// DeleteAll deletes the jobs that have ended, of those that the caller may delete without
// asking whose they are, and returns how many that are and how many have not ended.
func (s *Jobs) DeleteAll(ctx context.Context, c Caller) (deleted, skipped int, err error) {
	err = s.do(ctx, c, DeleteAllJobs, Subject{}, func(ctx context.Context, open *call) error {
		f := own(c, joblet.Filter{})
		if deleted, _, err = s.sup.Prune(ctx, f, false); err != nil {
			return err
		}
		skipped = s.sup.ActiveOf(f.Owner)
		open.done = deletedAll(deleted, skipped)
		return nil
	})
	return deleted, skipped, err
}

// Prune is DeleteAll for the jobs that pass a filter. It returns how many bytes their
// output and files took; with dryRun, without deleting them.
func (s *Jobs) Prune(ctx context.Context, c Caller, f joblet.Filter, dryRun bool) (deleted int, freed int64, err error) {
	err = s.do(ctx, c, PruneJobs, Subject{Detail: pruneDetail(f, dryRun)}, func(ctx context.Context, open *call) error {
		if deleted, freed, err = s.sup.Prune(ctx, own(c, f), dryRun); err == nil {
			open.done = pruned(deleted, freed)
		}
		return err
	})
	return deleted, freed, err
}

// Processes returns the processes of a job that runs.
func (s *Jobs) Processes(ctx context.Context, c Caller, ref string) (all joblet.Processes, err error) {
	err = s.onJob(ctx, c, ListProcesses, ref, Subject{}, func(ctx context.Context, _ *call, id string) error {
		all, err = s.sup.Processes(ctx, id)
		return err
	})
	return all, err
}

// Samples is where samples of what a job takes go.
type Samples struct {
	Ready   func() error // waits until more may be read
	Release func()       // says that what Ready waited for is not needed
	Emit    func(id string, sample joblet.Sample) error
}

// Watch emits what a job takes, after each interval, until it has ended; first, with
// replay, what was kept before.
func (s *Jobs) Watch(ctx context.Context, c Caller, ref string, interval time.Duration, replay bool, out Samples) error {
	return s.onJob(ctx, c, ReadMetrics, ref, Subject{}, func(ctx context.Context, _ *call, id string) error {
		var next time.Time
		kept := func() (err error) {
			if replay {
				next, err = s.history(ctx, id, next, time.Time{}, 0, out)
			}
			return err
		}
		if err := kept(); err != nil {
			return err
		}
		watched := false
		if err := s.sup.Watch(ctx, id, interval, func(id string, sample joblet.Sample) error {
			watched = true
			return out.Emit(id, sample)
		}); err != nil || watched {
			return err
		}
		return kept() // until the job ended, which was before it could be watched
	})
}

// History emits what was kept of what a job took between two moments, the newest limit of
// the samples.
func (s *Jobs) History(ctx context.Context, c Caller, ref string, from, to time.Time, limit int, out Samples) error {
	return s.onJob(ctx, c, ReadMetrics, ref, Subject{}, func(ctx context.Context, _ *call, id string) error {
		_, err := s.history(ctx, id, from, to, limit, out)
		return err
	})
}

// history returns from when on there are more samples.
func (s *Jobs) history(ctx context.Context, id string, from, to time.Time, limit int, out Samples) (next time.Time, err error) {
	defer out.Release()
	for left := -1; left != 0; {
		// The samples are read again for each batch, not held until there is room for them.
		if err := out.Ready(); err != nil {
			return from, err
		}
		all, err := s.sup.History(ctx, id, from, to, limit)
		if err != nil {
			return from, err
		}
		if left < 0 {
			left = len(all)
		}
		batch := slices.Clone(all[:min(len(all), left, historyBatch)])
		if len(batch) == 0 {
			break
		}
		for _, sample := range batch {
			if err := out.Emit(id, sample); err != nil {
				return from, err
			}
		}
		left -= len(batch)
		from, limit = batch[len(batch)-1].Time.Add(1), 0
	}
	return from, nil
}
