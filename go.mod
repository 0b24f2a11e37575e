module github.com/joblet/joblet

go 1.26
