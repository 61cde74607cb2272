"""awm-train as a child that does not outlive its parent, however that dies: it saves and ends as on SIGTERM."""

from reward_server.process import exit_with_parent

if __name__ == "__main__":
    exit_with_parent()
    from awm.train import main

    main()
