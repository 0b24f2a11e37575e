package wire

import (
	"slices"
	"strings"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

func securityToProto(s joblet.Security) *api.JobSecurity {
	if s.IsZero() {
		return nil
	}
	return &api.JobSecurity{
		Profile: string(s.Profile), AllowCalls: s.AllowCalls, DenyCalls: s.DenyCalls,
		CapAdd: s.CapAdd, CapDrop: s.CapDrop, User: s.User, LogDenied: s.LogDenied,
	}
}

func securityFromProto(p *api.JobSecurity) joblet.Security {
	return joblet.Security{
		Profile: joblet.Profile(p.GetProfile()), AllowCalls: p.GetAllowCalls(), DenyCalls: p.GetDenyCalls(),
		CapAdd: p.GetCapAdd(), CapDrop: p.GetCapDrop(), User: p.GetUser(), LogDenied: p.GetLogDenied(),
	}
}

// securityText is all of s, to see whether it is UTF-8.
func securityText(s joblet.Security) string {
	return strings.Join(slices.Concat([]string{string(s.Profile), s.User}, s.AllowCalls, s.DenyCalls, s.CapAdd, s.CapDrop), " ")
}

func deniedToProto(calls []joblet.DeniedCall) (all []*api.DeniedCall) {
	for _, c := range calls {
		all = append(all, &api.DeniedCall{Call: c.Call, Argument: c.Argument, Errno: c.Errno, Count: c.Count, Remedy: string(c.Remedy)})
	}
	return all
}

func deniedFromProto(calls []*api.DeniedCall) (all []joblet.DeniedCall) {
	for _, p := range calls {
		all = append(all, joblet.DeniedCall{
			Call: p.GetCall(), Argument: p.GetArgument(), Errno: p.GetErrno(), Count: p.GetCount(), Remedy: joblet.Remedy(p.GetRemedy()),
		})
	}
	return all
}
