package server

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet/internal/wire"
)

// unary is what every call without a stream passes through.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	err = s.call(ctx, info.FullMethod, func(ctx context.Context) (err error) {
		resp, err = handler(ctx, req)
		return err
	})
	if err != nil {
		return nil, err // a handler's half answer is none
	}
	return resp, nil
}

// stream is the same for the others.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return s.call(ss.Context(), info.FullMethod, func(ctx context.Context) error {
		return handler(srv, callStream{ss, ctx})
	})
}

type callStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s callStream) Context() context.Context { return s.ctx }

// call decides whether the caller may, runs handle under a context that ends
// with the daemon, and turns what goes wrong into a status.
func (s *Server) call(ctx context.Context, method string, handle func(context.Context) error) (err error) {
	s.activity.begin()
	defer s.activity.end()
	s.metrics.CallBegins()
	begun := time.Now()
	defer func() {
		s.metrics.CallEnded(strings.TrimPrefix(method, "/"), status.Code(err).String(), time.Since(begun))
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in a call", "method", method, "panic", p, "stack", string(debug.Stack()))
			err, _ = wire.ErrorToStatus(wire.ErrInternal)
		}
	}()
	caller := callerOf(ctx)
	if err = authorize(caller, method); err == nil {
		err = handle(ctx)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && context.Cause(ctx) == errStopping {
		err = errStopping
	}
	sent, forLog := wire.ErrorToStatus(err)
	if forLog {
		s.log.LogAttrs(ctx, slog.LevelError, "call failed",
			slog.String("method", method), slog.String("caller", caller.name()), slog.Any("error", err))
	}
	return sent
}
