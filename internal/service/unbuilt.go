package service

import (
	"context"

	"github.com/joblet/joblet"
)

// Unbuilt answers for an operation that this version does not have; what is the part of
// the API that it belongs to, target what the request names.
func (s *Service) Unbuilt(ctx context.Context, c Caller, op Operation, what, target string) error {
	return s.do(ctx, c, op, Subject{Target: target}, func(context.Context, *call) error {
		return joblet.Errorf(joblet.Unimplemented, "%s: not supported by this version of joblet", what)
	})
}
