#: tries = "raising its own limits above what it was given"
#: stdout = "(NPROC|NOFILE|FSIZE|CORE) (EPERM|ValueError)\n.*"
import resource

for name in ("NPROC", "NOFILE", "FSIZE", "CORE"):
    kind = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(kind)[1]
    try:
        resource.setrlimit(kind, (hard + 1, hard + 1))
        print(name, "raised")
    except PermissionError:
        print(name, "EPERM")
    except ValueError:
        print(name, "ValueError")
